"""C++ sources of the kernel for a few tokens through experts, and the library compiled from them."""
