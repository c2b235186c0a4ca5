"""What has to happen before MuJoCo draws in a process that also runs torch."""

from __future__ import annotations

from contextlib import suppress


def prepare_drawing() -> None:
    """Load triton, where it is installed, before the first OpenGL context.

    Both triton and Mesa's software renderer hold LLVM. A process that loads triton after it has drawn, as torch does
    when it needs its compiler, ends with a segmentation fault; the other order is fine.
    """
    with suppress(ImportError):
        import triton  # noqa: F401
