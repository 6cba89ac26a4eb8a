"""Compile the kernels into the wheel where a C++ compiler is; else the wheel is pure and they compile at first use."""

import importlib.util
import os
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeBuildHook(BuildHookInterface):
    """Adds `thrifty/*/native/kernels.so`, which need the platform but no particular Python."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before a wheel is packed; `version` is `editable` for an installation in place."""
        if version == "editable" or os.environ.get("THRIFTY_NATIVE") == "0":
            return
        build = self._native_build()
        self._folder = tempfile.TemporaryDirectory()
        libraries = {}
        try:
            command = build.compiler()
            if command is None:
                raise build.CompileError("no C++ compiler")
            for sources in build.folders():
                place = f"{sources.relative_to(Path(self.root).resolve())}/{build.LIBRARY}"
                libraries[place] = Path(self._folder.name) / place
                build.compile_library(command, sources, libraries[place])
        except build.CompileError as error:
            self.app.display_warning(f"pure wheel, kernels compile at first use: {error}")
            return
        build_data["force_include"] |= {str(library): place for place, library in libraries.items()}
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")

    def _native_build(self) -> Any:
        path = Path(self.root).resolve() / "thrifty/native_build.py"
        spec = importlib.util.spec_from_file_location("native_build", path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
