"""``python -m landscapex`` is the command ``landscapex``."""

from __future__ import annotations

from landscapex.cli import main

if __name__ == "__main__":
    main()
