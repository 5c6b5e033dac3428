"""Attributes that are computed once."""

from dci._runtime.cached import cached
from tests.processes import succeed


class Counting:
    calls = 0

    @cached
    def value(self):
        """Return a number."""
        self.calls += 1
        return 7


def test_computed_once_for_each_object():
    first, second = Counting(), Counting()
    assert first.calls == 0
    assert [first.value, first.value, second.value] == [7, 7, 7]
    assert (first.calls, second.calls) == (1, 1)
    assert Counting.value.__doc__ == "Return a number."


def test_a_child_forked_while_another_thread_computes_does_not_wait_for_it():
    succeed("""
        import os, threading
        from dci._runtime.cached import cached

        class Slow:
            @cached
            def value(self):
                inside.set()
                go_on.wait()
                return 1

        inside, go_on = threading.Event(), threading.Event()
        thread = threading.Thread(target=lambda: Slow().value)
        thread.start()
        inside.wait()
        child = os.fork()
        if child == 0:
            go_on = threading.Event()
            go_on.set()
            os._exit(0 if Slow().value == 1 else 1)
        go_on.set()
        thread.join()
        assert os.waitpid(child, 0)[1] == 0
    """)
