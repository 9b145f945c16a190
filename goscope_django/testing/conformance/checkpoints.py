"""The contract of ``CheckpointProvider``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from goscope_django.contracts import Checkpoint
from goscope_django.exceptions import CheckpointConflict, CheckpointTooLarge
from goscope_django.testing.conformance.base import Conformance, Drive

MOMENT = datetime(2024, 2, 29, 12, 30, 15, 123_000, tzinfo=UTC)


def checkpoint(task: str = "import", sequence: int = 0, **fields: Any) -> Checkpoint:
    """A checkpoint whose id says what it is."""
    given = {"id": f"{task}-{sequence}", "timestamp": MOMENT, **fields}
    return Checkpoint(task_id=task, sequence=sequence, **given)


class CheckpointConformance(Conformance):
    """Numbered states, written once."""

    def test_a_checkpoint_comes_back_as_it_was(self, provider: Any, drive: Drive) -> None:
        saved = checkpoint(progress=12.5, data={"row": (1, 2), "seen": {3}}, estimated_time_remaining=90.5)
        drive(provider, "save", saved)
        assert drive(provider, "load_latest", "import") == saved
        assert drive(provider, "load", saved.id) == saved
        assert drive(provider, "list", "import") == [saved]

    def test_nothing_saved(self, provider: Any, drive: Drive) -> None:
        assert drive(provider, "load_latest", "import") is None
        assert drive(provider, "load", "import-0") is None
        assert drive(provider, "list", "import") == []
        assert drive(provider, "tasks") == []

    def test_the_latest_is_the_highest_sequence(self, provider: Any, drive: Drive) -> None:
        for sequence in (2, 10, 1):
            drive(provider, "save", checkpoint(sequence=sequence))
        assert drive(provider, "load_latest", "import").sequence == 10
        assert [one.sequence for one in drive(provider, "list", "import")] == [1, 2, 10]

    def test_a_second_writer_is_refused(self, provider: Any, drive: Drive) -> None:
        drive(provider, "save", checkpoint(data="first"))
        with pytest.raises(CheckpointConflict, match="import"):
            drive(provider, "save", checkpoint(id="another", data="second"))
        assert drive(provider, "load_latest", "import").data == "first"
        assert drive(provider, "load", "another") is None

    def test_an_id_is_written_once(self, provider: Any, drive: Drive) -> None:
        drive(provider, "save", checkpoint(sequence=1, data="first"))
        with pytest.raises(CheckpointConflict):
            drive(provider, "save", checkpoint(sequence=2, id="import-1", data="second"))
        assert drive(provider, "load", "import-1").data == "first"

    def test_one_of_many_writers(self, provider: Any, drive: Drive) -> None:
        def attempt(number: int) -> tuple[Any, str, tuple[Any, ...]]:
            return (provider, "save", (checkpoint(id=f"writer-{number}", data=number),))

        with pytest.raises(CheckpointConflict):
            drive.together(8, attempt)
        assert len(provider.list("import")) == 1

    def test_tasks_do_not_meet(self, provider: Any, drive: Drive) -> None:
        for task in ("b", "a", "ab"):
            drive(provider, "save", checkpoint(task))
        assert drive(provider, "tasks") == ["a", "ab", "b"]
        assert drive(provider, "tasks", "a") == ["a"]
        assert [one.task_id for one in drive(provider, "list", "a")] == ["a"]
        assert drive(provider, "delete_all", "a") == 1
        assert drive(provider, "tasks") == ["ab", "b"]

    def test_cleanup_keeps_the_latest(self, provider: Any, drive: Drive) -> None:
        for sequence in range(6):
            drive(provider, "save", checkpoint(sequence=sequence))
        assert drive(provider, "cleanup", "import", 2) == 4
        assert [one.sequence for one in drive(provider, "list", "import")] == [4, 5]
        assert drive(provider, "cleanup", "import", 2) == 0
        assert drive(provider, "cleanup", "import", 9) == 0
        assert drive(provider, "cleanup", "import", 0) == 2

    def test_delete_all(self, provider: Any, drive: Drive) -> None:
        for sequence in range(3):
            drive(provider, "save", checkpoint(sequence=sequence))
        assert drive(provider, "delete_all", "import") == 3
        assert drive(provider, "delete_all", "import") == 0

    @pytest.mark.parametrize("text", ["$x", '{"$gt": 1}', "a.b", "", "k" * 10_000, "nul\0nul"])
    def test_any_text_is_an_id(self, provider: Any, drive: Drive, text: str) -> None:
        drive(provider, "save", checkpoint(text, id=text, data=text))
        assert drive(provider, "load", text).data == text
        assert drive(provider, "tasks") == [text]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("sequence", -1),
            ("sequence", True),
            ("sequence", 1.0),
            ("sequence", "1"),
            ("sequence", 2**70),
            ("progress", -0.1),
            ("progress", 100.1),
            ("progress", float("nan")),
            ("progress", True),
            ("progress", "50"),
            ("timestamp", MOMENT.replace(tzinfo=None)),
            ("timestamp", 1),
            ("id", None),
            ("task_id", 7),
            ("estimated_time_remaining", -1),
            ("estimated_time_remaining", float("inf")),
        ],
    )
    def test_bad_fields(self, provider: Any, drive: Drive, field: str, value: object) -> None:
        fields: dict[str, Any] = {"id": "x", "task_id": "import", "sequence": 0, "timestamp": MOMENT, field: value}
        with pytest.raises((ValueError, TypeError), match=field):
            drive(provider, "save", Checkpoint(**fields))
        assert drive(provider, "tasks") == []

    @pytest.mark.parametrize("keep", [-1, True, 1.0, "1", None], ids=repr)
    def test_bad_keep_counts(self, provider: Any, drive: Drive, keep: object) -> None:
        with pytest.raises((ValueError, TypeError), match="keep_count"):
            drive(provider, "cleanup", "import", keep)

    def test_state_that_does_not_fit(self, provider: Any, drive: Drive) -> None:
        with pytest.raises(CheckpointTooLarge, match="import"):
            drive(provider, "save", checkpoint(data="x" * (17 * 1024 * 1024)))
        assert drive(provider, "load_latest", "import") is None
