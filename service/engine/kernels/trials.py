"""Which kernels ended an engine process while they were checked: the next one serves without them.

An illegal access poisons the process's CUDA context, a bad launch may end the process itself. Started again, it would
try the same kernel and end the same way, for ever: so what is on trial is noted in a file that outlives the process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.errors import EngineFailed


@dataclass(frozen=True, slots=True)
class Trials:
    """`file` names the kernel that is on trial while it is; None: nothing is noted."""

    file: Path | None = None

    @property
    def convictions(self) -> Path | None:
        """The file of the kernels that ended a process. Without it they are tried again."""
        return self.file.with_suffix(".convicted") if self.file is not None else None

    def convicted(self) -> frozenset[str]:
        """Their names. To be asked for while nothing is on trial: a name that is noted then is a dead process's."""
        if self.file is None or self.convictions is None:
            return frozenset()
        past = self.convictions.read_text("utf-8") if self.convictions.exists() else ""
        if self.file.exists():
            past += self.file.read_text("utf-8") + "\n"
            self.convictions.write_text(past, "utf-8")
            self.file.unlink()
        return frozenset(past.split())

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """The block is the trial of the kernel `name`. Only its process's end, or EngineFailed, convicts it."""
        if self.file is None:
            yield
            return
        self.file.write_text(name, "utf-8")
        try:
            yield
        except EngineFailed:
            raise
        except BaseException:
            self.file.unlink()
            raise
        self.file.unlink()


NO_TRIALS = Trials()
"""Notes nothing."""
