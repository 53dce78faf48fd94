"""Errors that a user can act on, and the exit codes the commands end with.

Every room may import this module.
"""

EXIT_COMPARISON = 1  # parity or fingerprint: two results differ by more than they may
EXIT_USER_ERROR = 2  # bad config, data or arguments: the message names the cause and the remedy
EXIT_NON_FINITE = 3  # the loss or a gradient became NaN or infinite
EXIT_FINDINGS = 4  # done and written, but some cases or systems failed, or a check of the data did
EXIT_DISK_FULL = 5  # no space left: what was saved before stays usable
EXIT_DAMAGED = 6  # no checkpoint of the run can be trusted
EXIT_LOCKED = 7  # another process trains in this run folder
EXIT_OUT_OF_MEMORY = 8  # the batch does not fit: the message says which one does
EXIT_HUNG = 9  # the watchdog ended a run that stood still
EXIT_PEERS = 69  # several processes: some could not be reached, or one has gone; a restart may help
EXIT_INTERRUPTED = 75  # a signal; EX_TEMPFAIL: the same command goes on


class UserError(Exception):
    """Something the user can correct: a line of cause, and one of remedy.

    The cause names the file, case or config key. The commands print both without a traceback and
    end with ``exit_code``.
    """

    def __init__(self, cause: str, remedy: str, *, exit_code: int = EXIT_USER_ERROR):
        super().__init__(f"{cause}\n{remedy}")
        self.cause, self.remedy, self.exit_code = cause, remedy, exit_code


class RunInterrupted(SystemExit):
    """The run was asked to stop and has saved; not an error that a caller may swallow."""

    def __init__(self) -> None:
        super().__init__(EXIT_INTERRUPTED)
