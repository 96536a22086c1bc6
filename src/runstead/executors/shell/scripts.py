"""What is run by the shell of an image (`/bin/sh`, POSIX) where its container is reached through an engine's API alone.

Any shell will do, with what small systems have beside it: `grep`, `cat`, `stat`, `find`, `dd`, `head`, `mkdir`, `rm`.
Processes are told apart by a variable that all descendants of a program inherit, with a value that nobody guesses.
"""

MARK = "RUNSTEAD_EXECUTION"  # the variable

# Becomes a program: folder, "1" if it has an input, rows and columns of its terminal, then what to execute. One line
# on its error output says that it begins, or why not; before that line there may be words of the engine.
EXECUTE = r"""
if ! cd "$1" 2>/dev/null; then echo "$RUNSTEAD_EXECUTION:folder" >&2; exit 126; fi
if [ "$3" ]; then stty rows "$3" cols "$4" 2>/dev/null; fi
case "$5" in
*/*) [ -f "$5" ] && [ -x "$5" ] ;;
*) command -v "$5" >/dev/null 2>&1 ;;
esac || { echo "$RUNSTEAD_EXECUTION:program" >&2; exit 127; }
echo "$RUNSTEAD_EXECUTION:$$" >&2
if [ "$2" ]; then shift 4; exec "$@"; fi
shift 4
exec "$@" </dev/null
"""

# `rs_kill MARK` ends all that carry a mark, their children that do not, and what is in their sessions.
_KILL = r"""
rs_tree() {
  rs_found=' '
  for rs_file in $(grep -sl -e "$1" /proc/[0-9]*/environ 2>/dev/null); do
    rs_file=${rs_file#/proc/}; rs_found="$rs_found${rs_file%/environ} "
  done
  [ "$rs_found" != ' ' ] || return 1
  rs_again=1
  while [ "$rs_again" ]; do
    rs_again=
    while read -r rs_line; do
      rs_pid=${rs_line%% *}
      set -- ${rs_line##*) }
      case "$rs_found" in *" $rs_pid "*) continue ;; esac
      case "$rs_found" in *" $2 "* | *" $4 "*) rs_found="$rs_found$rs_pid "; rs_again=1 ;; esac
    done <<RS_STAT
$(cat /proc/[0-9]*/stat 2>/dev/null)
RS_STAT
  done
}
rs_kill() {
  rs_rounds=0
  while rs_tree "$1"; do
    kill -KILL $rs_found 2>/dev/null
    rs_rounds=$((rs_rounds + 1))
    [ $rs_rounds -lt 400 ] || return 1
    [ $rs_rounds -lt 5 ] || sleep 0.02 2>/dev/null || sleep 1
  done
}
"""

# When a process began, in the kernel's ticks: with its id, what tells it from all others. Everybody may read that.
_BORN = r"""
rs_born() {
  read -r rs_line <"/proc/$1/stat" || return 1
  set -- ${rs_line##*) }
  [ "$1" != Z ] || return 1
  shift 19
  rs_at=$1
} 2>/dev/null
"""

# Stands by a program in the background: state folder, number, mark, description, folder, seconds or nothing, then what
# to execute.
SPAWN = (
    _KILL
    + _BORN
    + r"""
cd "$5" 2>/dev/null || { echo "$3:folder" >&2; exit 126; }
case "$7" in
*/*) [ -f "$7" ] && [ -x "$7" ] ;;
*) command -v "$7" >/dev/null 2>&1 ;;
esac || { echo "$3:program" >&2; exit 127; }
[ -d "$1" ] || mkdir -p "$1" 2>/dev/null
rs_dir=$1/b$2; rs_mark=$3; rs_limit=$6
mkdir "$rs_dir" 2>/dev/null || { [ -d "$rs_dir" ] && echo "$3:taken" >&2 || echo "$3:state" >&2; exit 1; }
echo "$3" >"$rs_dir/mark"
printf '%s\n' "$4" >"$rs_dir/what.new"
shift 6
RUNSTEAD_EXECUTION=$rs_mark "$@" </dev/null >/dev/null 2>&1 &
rs_child=$!
rs_at=0
rs_born $$
rs_keeper_at=$rs_at
rs_born "$rs_child"
echo "$$ $rs_keeper_at $rs_child $rs_at" >"$rs_dir/pids"
mv "$rs_dir/what.new" "$rs_dir/what"
echo "$rs_mark:$rs_child" >&2
exec </dev/null >/dev/null 2>&1
if [ "$rs_limit" ]; then
  (
    sleep "$rs_limit" &
    rs_sleep=$!
    trap 'kill "$rs_sleep"; exit' TERM
    wait "$rs_sleep"
    mkdir "$rs_dir/timed" && rs_kill "RUNSTEAD_EXECUTION=$rs_mark"
  ) &
  rs_timer=$!
fi
wait "$rs_child"
rs_code=$?
[ -z "$rs_limit" ] || [ -d "$rs_dir/timed" ] || kill -TERM "$rs_timer"
echo "$rs_code" >"$rs_dir/code.new" && mv "$rs_dir/code.new" "$rs_dir/code"
"""
)

# What a lane can be asked for. Of each program in the background `rs_list` prints a line: number, "killed", "timed" or
# "-", code or "-", "there" if it or its keeper lives or "-", its process id, description.
LANE = (
    "LC_ALL=C; export LC_ALL\n"
    + _KILL
    + _BORN
    + r"""
rs_signal() {
  grep -sq -e "RUNSTEAD_EXECUTION=$1" "/proc/$2/environ" || return 0
  kill -s "$3" -- "-$2" 2>/dev/null || kill -s "$3" "-$2"
}
rs_list() {
  for rs_dir in "$1"/b*; do
    [ -e "$rs_dir/what" ] || continue
    rs_how=-; rs_alive=-; rs_code=-
    read -r rs_keeper rs_keeper_at rs_child rs_child_at <"$rs_dir/pids"
    read -r rs_what <"$rs_dir/what"
    rs_born "$rs_keeper" && [ "$rs_at" = "$rs_keeper_at" ] && rs_alive=there
    rs_born "$rs_child" && [ "$rs_at" = "$rs_child_at" ] && rs_alive=there
    [ ! -e "$rs_dir/code" ] || read -r rs_code <"$rs_dir/code"
    [ ! -d "$rs_dir/timed" ] || rs_how=timed
    [ ! -d "$rs_dir/killed" ] || rs_how=killed
    echo "${rs_dir##*/b} $rs_how $rs_code $rs_alive $rs_child $rs_what"
  done 2>/dev/null
}
rs_end() {
  [ -e "$1/b$2/what" ] && [ ! -e "$1/b$2/code" ] && mkdir "$1/b$2/killed" || return 3
  read -r rs_mark <"$1/b$2/mark"
  rs_kill "RUNSTEAD_EXECUTION=$rs_mark"
}
rs_open() {
  rs_path=$1
  if [ "$4" ]; then
    rs_parent=${rs_path%/*}
    mkdir -p "${rs_parent:-/}" || return 10
  fi
  case $(stat -L -c %f "$rs_path" 2>/dev/null) in
  '' | 8???) ;;
  4???) return 11 ;;
  *) return 12 ;;
  esac
  case $(readlink -f "$rs_path") in /proc/*) return 13 ;; esac
  if [ "$2" ]; then
    ( : >>"$rs_path" ) || return 14
    [ -f "$rs_path" ] || return 12
    command exec 3<>"$rs_path" || return 14
    if [ "$5" ]; then dd of=/proc/$$/fd/3 bs=1 count=0 seek=0 2>&1 || return 14; fi
    if [ "$3" ]; then chmod "$3" "$rs_path" || return 14; fi
  else
    ( : <"$rs_path" ) || return 14
    command exec 3<"$rs_path" || return 14
  fi
}
rs_size() { stat -L -c %s /proc/$$/fd/3; }
rs_close() { exec 3>&-; }
rs_read() { dd if=/proc/$$/fd/3 bs=65536 skip="$1" count="$2" 2>/dev/null; }
rs_cut() { dd of=/proc/$$/fd/3 bs=1 seek="$1" count=0; }
rs_write() {
  echo "$1:go"
  head -c "$2" | dd of=/proc/$$/fd/3 bs="$3" seek="$4" conv=notrunc
}
rs_stat() {
  [ -e "$1" ] || [ -L "$1" ] || { stat "$1"; return 14; }
  stat -c '%f %s %Y %n//' "$1"
}
rs_entries() {
  if [ ! -d "$1" ]; then rs_stat "$1/."; return 14; fi
  cd "$1" || return 14
  find . ! -name . -prune -exec stat -c '%f %s %Y %n//' {} + 2>/dev/null
  cd /
}
rs_delete() {
  if [ -L "$1" ] || { [ -e "$1" ] && [ ! -d "$1" ]; }; then rm -f "$1"
  elif [ ! -d "$1" ]; then stat "$1"; return 14
  elif [ "$2" ]; then rm -rf "$1"
  else rmdir "$1"
  fi
}
"""
)

# What the lane that watches over programs does when the server is gone: nobody could attend to them any more. Those
# that were being started at that moment are found a little later.
LAST_WILL = """
trap 'for rs_n in 1 2 3 4 5 6 7 8; do rs_kill "%s"; sleep 0.25 2>/dev/null || sleep 1; done' EXIT
"""

# Becomes one end of a connection to a port: address, port.
RELAY = r"""
if command -v python3 >/dev/null 2>&1; then
  exec python3 -S -E -c '
import os, socket, sys, threading
there = socket.create_connection((sys.argv[1], int(sys.argv[2])))
os.write(2, (os.environ["RUNSTEAD_EXECUTION"] + ":" + str(os.getpid()) + "\n").encode())
def there_to_here():
    try:
        while data := there.recv(1 << 16):
            left = memoryview(data)
            while left:
                left = left[os.write(1, left):]
    finally:
        os._exit(0)
threading.Thread(target=there_to_here, daemon=True).start()
try:
    while data := os.read(0, 1 << 16):
        there.sendall(data)
    there.shutdown(socket.SHUT_WR)
except OSError:
    os._exit(1)
threading.Event().wait()
' "$1" "$2"
fi
for rs_tool in socat nc perl; do
  command -v "$rs_tool" >/dev/null 2>&1 || continue
  echo "$RUNSTEAD_EXECUTION:$$" >&2
  case $rs_tool in
  socat) case $1 in *:*) exec socat - "TCP6:[$1]:$2" ;; *) exec socat - "TCP4:$1:$2" ;; esac ;;
  nc) exec nc "$1" "$2" ;;
  perl) exec perl -MIO::Socket::IP -e '
$s = IO::Socket::IP->new(PeerHost => $ARGV[0], PeerPort => $ARGV[1]) or exit 1;
if (!fork) { while (sysread STDIN, $b, 65536) { print {$s} $b; $s->flush } $s->shutdown(1); exit 0 }
while (sysread $s, $b, 65536) { syswrite STDOUT, $b }' "$1" "$2" ;;
  esac
done
echo "$RUNSTEAD_EXECUTION:program" >&2
exit 127
"""
