import gc

from fedsweep.imports import lasting


def test_nothing_is_collected_while_lasting_things_are_made_and_they_never_are_looked_at_again():
    before = gc.get_freeze_count()
    try:
        with lasting():
            assert not gc.isenabled()
            made = [[] for _ in range(100)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(made)
    finally:
        gc.unfreeze()


def test_collections_go_on_after_an_import_that_failed():
    try:
        with lasting():
            raise ImportError
    except ImportError:
        assert gc.isenabled()
    finally:
        gc.unfreeze()
