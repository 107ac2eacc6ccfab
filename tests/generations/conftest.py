"""What the matrix on rules needs of pytest."""

from __future__ import annotations

import pytest

# A failed check in there shows its values, as one in a test does.
pytest.register_assert_rewrite("tests.conformance.checks")
