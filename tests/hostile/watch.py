"What both corpora of hostile files need: a pickle that runs code, and a watch over what a process does."
import contextlib
import os
import sys
from pathlib import Path


class Evil:
    "Pickled, this makes an empty file when it is read back."
    def __init__(self, path: str | Path = "marker"): self.path = str(path)
    def __reduce__(self): return Path.touch, (Path(self.path),)


class Watch:
    """Notes what a process does that nobody asked for: writes outside `allowed`, other programs, unpickled
    names, the network."""
    EVENTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
              "os.forkpty", "os.startfile", "pty.spawn",
              "pickle.find_class", "ctypes.dlopen", "socket.connect", "webbrowser.open"}
    CHANGES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod",
               "os.chown", "os.truncate", "shutil.rmtree"}

    def __init__(self):
        self.on, self.allowed, self.seen = False, None, []
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple) -> None:
        """Python tells of what is about to be done. The library itself loads libc, to choose how it takes
        memory."""
        if not self.on: return
        if event in self.EVENTS and args != ("libc.so.6",): self.seen.append(f"{event} {str(args)[:200]}")
        elif event == "open":
            if set("wax+") & set(args[1] or "") or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.place(event, args[0])
        # else relative to a folder that was seen before
        elif event in self.CHANGES and (args[-1] in (-1, None) or event == "os.truncate"):
            for path in args[:2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
                self.place(event, path)

    def place(self, event: str, path) -> None:
        "Note a path that is not inside `allowed`; a file's own link is followed only where it is opened."
        if not isinstance(path, (str, bytes, os.PathLike)) or os.fsdecode(path) == os.devnull: return
        folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
        real = os.path.realpath(path) if event == "open" else os.path.join(os.path.realpath(folder), name)
        if self.allowed is None or os.path.commonpath([os.fsdecode(real), self.allowed]) != self.allowed:
            self.seen.append(f"{event} {os.fsdecode(path)!r}")

    @contextlib.contextmanager
    def look(self, allowed: Path | None = None):
        "Watch for a while; gives the list that what is seen is added to."
        self.on, self.allowed, self.seen = True, allowed and os.path.realpath(allowed), []
        try: yield self.seen
        finally: self.on = False
