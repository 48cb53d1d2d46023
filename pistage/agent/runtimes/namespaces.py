"""Namespaces: the words that put a command into a sandbox, by bubblewrap or by util-linux `unshare`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

#: What of the machine a sandbox sees, read-only. Of /etc only what programs need to start and to check certificates.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt")
ETC = (
    "alternatives", "ca-certificates", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime",
    "nsswitch.conf", "passwd", "pki", "protocols", "services", "ssl", "mime.types",
)  # fmt: skip

#: Some settings of the kernel ask for no capability, only for the user's number, and in a sandbox that an agent of the
#: machine's root makes, that is the machine's root: bubblewrap 0.8 left /proc/sys open to it.
KERNEL = ("sys", "sysrq-trigger", "irq", "bus", "fs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a sandbox can write to: the directory that holds its workspace, its /tmp and its root, and volumes."""

    directory: Path
    volumes: Sequence[tuple[Path, str, bool]] = ()  # directory, where it is seen, whether it is read-only


#: Makes the words that run others in a sandbox.
Wrapper = Callable[[Room, Sequence[str]], list[str]]


def bubblewrapped(room: Room, words: Sequence[str]) -> list[str]:
    """The words in a sandbox made by bubblewrap."""
    argv = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    argv += ["--hostname", "pistage"]
    for path in SYSTEM:
        if Path(path).is_symlink():
            argv += ["--symlink", str(Path(path).readlink()), path]
        else:
            argv += ["--ro-bind-try", path, path]
    for name in ETC:
        argv += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    argv += ["--proc", "/proc", "--dev", "/dev"]
    for name in KERNEL:
        argv += ["--ro-bind-try", f"/proc/{name}", f"/proc/{name}"]
    argv += ["--bind", str(room.directory / "tmp"), "/tmp"]
    argv += ["--bind", str(room.directory / "workspace"), "/workspace"]
    for source, target, is_read_only in room.volumes:
        argv += ["--ro-bind" if is_read_only else "--bind", str(source), target]
    # What bubblewrap made to mount on is not for writing either.
    return [*argv, "--remount-ro", "/", "--chdir", "/workspace", "--", *words]


#: The same by hand, as process 1 of the sandbox. Arguments: the room's directory, "--"-ended triples of volumes, the
#: words. A mount that came with flags (nosuid, nodev) can be made read-only only if they are said again.
_SETUP = r"""
set -e
room=$1; root=$room/root; shift
mount -t tmpfs -o mode=0755 sandbox "$root"
cd "$root"
seal() {
  mount -o remount,bind,ro "$1" 2>/dev/null || mount -o remount,bind,ro,nosuid,nodev "$1" 2>/dev/null ||
    mount -o remount,bind,ro,nosuid,nodev,noexec "$1"
}
see() {
  if [ -h "$1" ]; then ln -s "$(readlink "$1")" ".$1"
  elif [ -d "$1" ]; then mkdir -p ".$1"; mount --rbind "$1" ".$1"; seal ".$1"
  elif [ -e "$1" ]; then mkdir -p ".${1%/*}"; : >".$1"; mount --bind "$1" ".$1"; seal ".$1"; fi
}
for path in SYSTEM; do see "$path"; done
while read -r a b c d point rest; do
  case $point in "$root"/?*) seal "$point" ;; esac
done </proc/self/mountinfo
mkdir -p etc; for name in ETC; do see "/etc/$name"; done
mkdir -p proc dev tmp workspace .old
mount -t proc proc proc
for name in KERNEL; do
  [ ! -e "proc/$name" ] || { mount --bind "proc/$name" "proc/$name"; seal "proc/$name"; }
done
mount -t tmpfs -o mode=0755 dev dev
for name in null zero full random urandom; do : >"dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
ln -s /proc/self/fd dev/fd; ln -s fd/0 dev/stdin; ln -s fd/1 dev/stdout; ln -s fd/2 dev/stderr; mkdir -m 1777 dev/shm
mount --bind "$room/tmp" tmp
mount --bind "$room/workspace" workspace
while [ "$1" != -- ]; do
  mkdir -p ".$2"; mount --bind "$1" ".$2"; [ "$3" = rw ] || seal ".$2"; shift 3
done
shift
pivot_root . .old
cd /
umount -l /.old
rmdir /.old
mount -o remount,bind,ro /
hostname pistage 2>/dev/null || :
ip link set lo up 2>/dev/null || :
cd /workspace
set +e
setpriv --no-new-privs --bounding-set=-all --inh-caps=-all -- "$@"
exit $?
"""


def unshared(room: Room, words: Sequence[str]) -> list[str]:
    """The words in a sandbox made by util-linux."""
    (room.directory / "root").mkdir(exist_ok=True)
    setup = _SETUP.replace("SYSTEM", " ".join(SYSTEM)).replace("ETC", " ".join(ETC)).replace("KERNEL", " ".join(KERNEL))
    argv = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private", "--pid", "--net", "--ipc"]
    argv += ["--uts", "--fork", "--kill-child=KILL", "--", "/bin/sh", "-c", setup, "sh", str(room.directory)]
    for source, target, is_read_only in room.volumes:
        argv += [str(source), target, "ro" if is_read_only else "rw"]
    return [*argv, "--", *words]
