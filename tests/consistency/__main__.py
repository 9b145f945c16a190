"""``python -m tests.consistency --seed 1 --seconds 300``: see ``harness``."""

from __future__ import annotations

import sys

from tests.consistency.harness import main

sys.exit(main())
