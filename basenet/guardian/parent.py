"""The main process of a cluster node: it holds the fences and starts, watches and ends the rest.

Theory of operation
===================

It is the process that a supervisor knows (process 1 of a container, systemd's MainPID), and the
parent of the daemon and of the application (``--exec``). So the death of the daemon, the one fault
that a large program is bound to have, neither opens a fence nor ends the application (Q11)::

    daemon ends with 0, or was told to end      we end, with its code
    daemon ends with 2, 3 or 4 before it ever   a command or configuration that cannot be used:
      was ready                                 we end, with its code
    daemon ends otherwise                       all fences are closed; started again after 1 s,
                                                2 s, ... 30 s
    application ends                            the daemon is told to flush and end; we end with the
                                                application's code
    SIGTERM, SIGINT                             to the application, else to the daemon
      again                                     "hurried": nobody is waited for
    SIGUSR2                                     upgrade in place: a trial of the new program, the
                                                daemon's end, all fences closed, exec of ourselves

The fences go with this process. So nobody that they hold back may outlive it on its own wish: at a
second signal the application is killed.

The daemon has a process group of its own: Ctrl-C reaches the application and us, and we tell the
daemon when the application has ended and there is something to flush.
"""

import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from basenet.errors import BasenetError, NotFoundError, UsageError
from basenet.guardian import handover
from basenet.guardian.children import Child, reap
from basenet.guardian.handover import Handover
from basenet.guardian.process import GuardianLoop, make_pair, now_ns
from basenet.guardian.protocol import GUARDIAN_FD
from basenet.guardian.report import report, say

PASSED_ON: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH)
UPGRADE_SIGNAL: Final = signal.SIGUSR2
HANDLED: Final = (signal.SIGTERM, signal.SIGINT, UPGRADE_SIGNAL, signal.SIGCHLD, *PASSED_ON)

BACKOFF_S_MAX: Final = 30.0
_BACKOFF_S_MIN: Final = 1.0
# A daemon that ran for so long did not die of its start.
_STEADY_S: Final = 60.0
_ONE_WISH_S: Final = 0.5
_HURRY_S: Final = 1.0
# The daemon flushes for at most 35 s.
_UPGRADE_S_MAX: Final = 60.0
# An application's open transaction is waited for so long before the exec; see `_exec_when_closed`.
_CLOSE_S_MAX: Final = 10.0
_PER_SECOND: Final = 1_000_000_000
_UNUSABLE: Final = (2, 3, 4)


class Parent:
    """Daemon, application and fences of one node."""

    def __init__(
        self,
        *,
        daemon: Sequence[str],
        command: Sequence[str] | None,
        environment: Mapping[str, str],
        inherited: Handover | None = None,
    ) -> None:
        """Run ``daemon`` and, once that is ready, ``command``, both with ``environment``.

        ``inherited``: what this process held before it was exec'd anew.
        """
        self._daemon_words, self._command, self._environment = daemon, command, dict(environment)
        self._loop = GuardianLoop(on_ready=self._on_ready)
        self._daemon: Child | None = None
        self._daemon_code = 0
        self._daemon_since_ns = 0
        self._application: Child | None = None
        self._application_code: int | None = None
        self._trial: Child | None = None
        self._was_ready = False
        self._is_leaving = self._is_upgrading = self._is_daemon_told = False
        self._wishes = 0
        self._wished_ns = 0
        self._backoff_s = _BACKOFF_S_MIN
        # When to start or to kill the daemon, or to stop waiting for fences; 0: not at all.
        self._start_ns = self._kill_ns = self._exec_ns = 0
        if inherited is not None:
            self._was_ready = inherited.was_ready
            self._loop.keeper.adopt(inherited.fences)
            if inherited.application is not None:
                self._application = self._watch(Child(inherited.application))

    def run(self) -> int:
        """Serve until everybody has ended; return the exit code."""
        self._listen_to_signals()
        self._start_daemon()
        self._reap()
        while not self._is_over():
            self._loop.step()
            self._look_at_time()
        self._loop.close()
        code = self._daemon_code if self._application_code is None else self._application_code
        return code or int(self._wishes > 1)

    def _is_over(self) -> bool:
        return self._is_leaving and self._daemon is None and self._application is None

    def _look_at_time(self) -> None:
        now = now_ns()
        if self._kill_ns and now >= self._kill_ns and self._daemon is not None:
            self._kill_ns = 0
            self._daemon.send(signal.SIGKILL)
        if self._start_ns and now >= self._start_ns:
            self._start_daemon()
        if self._exec_ns and (self._loop.keeper.is_closed or now >= self._exec_ns):
            self._exec()

    # The daemon.

    def _start_daemon(self) -> None:
        self._start_ns = 0
        self._is_daemon_told = False
        ours, theirs = make_pair()
        try:
            environment = {**self._environment, GUARDIAN_FD: str(theirs.fileno())}
            daemon = Child.start(
                self._daemon_words, environment, inherit=theirs.fileno(), has_own_group=True
            )
        except NotFoundError as error:
            ours.close()
            report("daemon_not_started", "error", reason=str(error))
            self._start_later()
            return
        finally:
            theirs.close()
        self._daemon = self._watch(daemon)
        self._daemon_since_ns = now_ns()
        self._loop.serve(ours)
        report("daemon_started", pid=daemon.pid)

    def _start_later(self) -> None:
        self._start_ns = now_ns() + int(self._backoff_s * _PER_SECOND)
        self._backoff_s = min(BACKOFF_S_MAX, 2 * self._backoff_s)

    def _tell_daemon(self, number: int = signal.SIGTERM) -> None:
        """Have the daemon flush and end; one that waits to be started is not started."""
        self._start_ns = 0
        self._is_daemon_told = True
        if self._daemon is not None:
            self._daemon.send(number)

    def _on_daemon_ended(self, code: int) -> None:
        self._loop.daemon_ended()
        self._daemon, self._kill_ns = None, 0
        # Killed by the signal itself, before it listened to signals: it had nothing to flush.
        was_asleep = self._is_daemon_told and code == 128 + signal.SIGTERM
        self._daemon_code = 0 if was_asleep else code
        if self._is_upgrading:
            self._exec_ns = now_ns() + int(_CLOSE_S_MAX * _PER_SECOND)
        elif self._is_daemon_told or code == 0 or (code in _UNUSABLE and not self._was_ready):
            self._leave()
        else:
            if now_ns() - self._daemon_since_ns >= _STEADY_S * _PER_SECOND:
                self._backoff_s = _BACKOFF_S_MIN
            report("daemon_died", "error", exit_code=code, again_seconds=self._backoff_s)
            self._start_later()

    def _on_ready(self) -> None:
        self._was_ready = True
        is_wanted = self._application is None and self._application_code is None
        if self._command is None or not is_wanted or self._is_leaving:
            return
        try:
            child = Child.start(self._command, self._environment)
        except NotFoundError as error:
            say(f"--exec {error}")
            self._application_code = error.exit_code
            self._leave()
            self._tell_daemon()
            return
        self._application = self._watch(child)
        report("application_started", pid=child.pid)

    # The application, and the end.

    def _leave(self) -> None:
        """Begin to end: the application is told, and no upgrade follows."""
        if self._is_leaving:
            return
        self._is_leaving, self._is_upgrading, self._exec_ns = True, False, 0
        if self._application is not None:
            self._application.send(signal.SIGTERM)

    def _on_application_ended(self, code: int) -> None:
        self._application, self._application_code = None, code
        report("application_ended", exit_code=code)
        self._leave()
        self._tell_daemon()

    def _on_wish(self, number: int) -> None:
        """Do what SIGTERM and SIGINT ask for; a supervisor may send both, which is one wish."""
        now = now_ns()
        if self._wishes and now - self._wished_ns < _ONE_WISH_S * _PER_SECOND:
            return
        self._wishes, self._wished_ns = self._wishes + 1, now
        if self._wishes > 1:
            self._hurry(number)
            return
        self._is_upgrading, self._exec_ns = False, 0
        self._is_leaving = True
        if self._application is None:
            if not self._is_daemon_told:  # a second signal would hurry it
                self._tell_daemon(number)
        elif not (number == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty()):
            # What is typed is sent by the terminal to the application, too.
            self._application.send(number)

    def _hurry(self, number: int) -> None:
        report("hurried", "warning", signal=number)
        if self._application is not None:
            self._application.send(signal.SIGKILL)
        self._tell_daemon(number)
        self._kill_ns = now_ns() + int(_HURRY_S * _PER_SECOND)

    # Upgrade.

    def _on_upgrade_wish(self) -> None:
        if self._is_leaving or self._is_upgrading or self._trial is not None:
            return
        environment = {**self._environment, handover.TRIAL: str(handover.VERSION)}
        try:
            self._trial = self._watch(Child.start(_own_words(), environment))
        except NotFoundError as error:
            report("upgrade_refused", "error", reason=str(error))

    def _on_trial_ended(self, code: int) -> None:
        self._trial = None
        if self._is_leaving:
            return
        if code != 0:
            reason = f"a trial of the new program ended with {code}"
            report("upgrade_refused", "error", reason=reason)
            return
        report("upgrading")
        self._is_upgrading = True
        self._tell_daemon()
        if self._daemon is None:
            self._exec_ns = now_ns() + int(_CLOSE_S_MAX * _PER_SECOND)
        else:
            self._kill_ns = now_ns() + int(_UPGRADE_S_MAX * _PER_SECOND)

    def _exec(self) -> None:
        """Become the new program, with every lock; return only when that fails.

        All fences are closed, but for one whose application keeps a transaction open for longer
        than `_CLOSE_S_MAX`: the thread that waits for that lock ends, and the new program waits
        anew, so another transaction of the same application may begin before.
        """
        self._exec_ns, self._is_upgrading = 0, False
        state = Handover(
            was_ready=self._was_ready,
            application=None if self._application is None else self._application.pid,
            fences=self._loop.keeper.fences,
        )
        kept = state.descriptors()
        saved = state.save()
        # What comes while no handler stands waits for the new program.
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        handover.set_inheritable((*kept, saved), is_inheritable=True)
        environment = {**self._environment, handover.STATE_FD: str(saved)}
        words = _own_words()
        try:
            os.execve(words[0], words, environment)  # noqa: S606  (that is the point)
        except OSError as error:
            os.close(saved)
            handover.set_inheritable(kept, is_inheritable=False)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
            report("upgrade_refused", "error", reason=os.strerror(error.errno or 0))
            self._start_daemon()

    # Signals and the ends of children.

    def _listen_to_signals(self) -> None:
        self._bell_out, self._bell_in = socket.socketpair()
        for end in (self._bell_out, self._bell_in):
            end.setblocking(False)
        for number in HANDLED:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._bell_in.fileno(), warn_on_full_buffer=False)
        self._loop.watch(self._bell_out.fileno(), self._take_signals)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)

    def _take_signals(self) -> None:
        for number in self._bell_out.recv(4096):
            if number in (signal.SIGTERM, signal.SIGINT):
                self._on_wish(number)
            elif number == UPGRADE_SIGNAL:
                self._on_upgrade_wish()
            elif number in PASSED_ON and self._application is not None:
                self._application.send(number)
        self._reap()

    def _watch(self, child: Child) -> Child:
        self._loop.watch(child.descriptor, self._reap)
        return child

    def _reap(self) -> None:
        """Take leave of every child that has ended, also of strangers: we may be process 1."""
        for pid, code in reap():
            acts: tuple[tuple[Child | None, Callable[[int], None]], ...] = (
                (self._daemon, self._on_daemon_ended),
                (self._application, self._on_application_ended),
                (self._trial, self._on_trial_ended),
            )
            for child, act in acts:
                if child is not None and child.pid == pid:
                    self._loop.unwatch(child.descriptor)
                    child.close()
                    act(code)
                    break


def _own_words() -> list[str]:
    """Return what started this program, to start it again."""
    return [sys.executable, *sys.orig_argv[1:]]


def split_command(command: str) -> list[str]:
    """Return the words of ``--exec``; raises `UsageError` when there are none."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--exec {command!r} cannot be split into words: {error}.") from error
    if not words:
        raise UsageError("--exec is empty: give the command that starts the application.")
    return words


def run(daemon: Sequence[str], command: str | None) -> int:
    """Be the guardian of a node whose daemon is started by ``daemon``; return the exit code.

    This is the whole of the program, before and after an upgrade: what it was told by its former
    self stands in the environment.
    """
    environment = dict(os.environ)
    if (version := environment.pop(handover.TRIAL, None)) is not None:
        return 0 if handover.is_readable(version) else 1
    inherited = None
    if (saved := environment.pop(handover.STATE_FD, None)) is not None:
        inherited = handover.load(int(saved))
    try:
        words = None if command is None else split_command(command)
    except BasenetError as error:
        say(str(error))
        return error.exit_code
    return Parent(daemon=daemon, command=words, environment=environment, inherited=inherited).run()
