"""The plan of the house: no room but stages/ knows a stage, and imports point downward."""

import subprocess
import sys

import pytest
from structure import OTHER_MEANINGS, PACKAGE, ROOMS, STAGES, imports, stage_names

from jaxalign.stages import NAMES


def test_stages_are_named_in_their_own_room_alone():
    assert STAGES == NAMES
    assert stage_names() == []


def test_what_is_excepted_is_there():
    for file, word in OTHER_MEANINGS:
        assert f'"{word}' in (PACKAGE / file).read_text(encoding="utf-8"), file


def test_imports_point_downward():
    found = imports()
    assert {room for _, *rooms in found for room in rooms} <= set(ROOMS)
    upward = [
        f"{file} imports {other}" for file, room, other in found if ROOMS.index(other) < ROOMS.index(room)
    ]
    assert upward == []


def test_a_stage_that_is_named_is_found():
    # A word that the code does write, taken for a stage.
    assert any("data/kinds.py" in line for line in stage_names(("preference",)))


@pytest.mark.slow
def test_what_is_not_used_is_not_loaded():
    """Loading torch alone takes longer than all the rest."""
    names = "torch", "tensorflow", "transformers", "trl", "datasets"
    program = f"import sys, jaxalign.stages, jaxalign.verbs.train; print(*(set({names}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
