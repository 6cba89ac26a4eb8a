"""C++ sources of the decode kernel, and the library compiled from them where a wheel brings one."""
