"""An object in a process of its own."""

import subprocess
import sys

PROGRAM = """
import operator
import signal
from rlhf_bilevel.utils.child import Child

if __name__ == "__main__":
    child = Child(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, []), what="it", option="--it")
    print(child.call(operator.contains, signal.SIGINT))
    child.close()
"""


def test_the_first_process_of_a_program_never_gets_ctrl_c() -> None:
    """The first one also starts Python's resource tracker, which lets signals through when it has started."""
    assert subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True).stdout == "True\n"
