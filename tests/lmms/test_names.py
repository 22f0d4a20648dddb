from harness.lmms.names import lmms_tasks, own_tasks
from harness.lmms.tasks import _manager


def test_every_task_of_lmms_eval_is_known_by_its_name_in_the_files():
    assert set(_manager(True).all_tasks) <= lmms_tasks() | own_tasks()


def test_ours_are_those_that_lmms_eval_finds():
    assert set(_manager(False).all_tasks) == own_tasks()
