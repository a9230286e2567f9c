# shellcheck shell=bash
# Processes that are known to be ours: a record holds pid, start time and boot, so that a reused pid is never signalled.

say() { printf 'brokers: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# proc_stat PID: state, parent, session, threads and start time (ticks since boot) of a process; fails where there is none.
proc_stat() {
  local line=
  { IFS= read -rd '' line < "/proc/$1/stat" || [ -n "$line" ]; } 2>/dev/null || return 1
  # The name in parentheses may hold anything; the fields begin after the last one.
  local -a fields
  read -ra fields <<< "${line##*) }"
  PROC_STATE=${fields[0]} PROC_PARENT=${fields[1]} PROC_SESSION=${fields[3]}
  PROC_THREADS=${fields[17]} PROC_START=${fields[19]}
}

boot_id() { local id; read -r id < /proc/sys/kernel/random/boot_id; printf '%s' "$id"; }

# record ROLE PID: notes that PID is this broker's ROLE.
record() {
  proc_stat "$2" || return 0
  printf '%s %s %s\n' "$2" "$PROC_START" "$(boot_id)" > "$STATE/$1.pid.$BASHPID"
  mv "$STATE/$1.pid.$BASHPID" "$STATE/$1.pid"
}

# read_record ROLE: sets PID and PID_START; fails where nothing was recorded, or before the last boot.
read_record() {
  local boot
  PID='' PID_START=''
  [ -f "$STATE/$1.pid" ] && read -r PID PID_START boot < "$STATE/$1.pid" && [ "$boot" = "$(boot_id)" ]
}

# running: whether the process that proc_stat found does more than wait for its parent. A first thread that has ended is a
# zombie too; its process keeps ports and files until the last thread has ended.
running() { [ "$PROC_STATE" != Z ] || [ "$PROC_THREADS" -gt 1 ]; }

# alive PID START: whether that very process runs.
alive() { proc_stat "$1" && [ "$PROC_START" = "$2" ] && running; }

# owned ROLE: whether the recorded process runs; sets PID.
owned() { read_record "$1" && alive "$PID" "$PID_START"; }

# members ROLE: "pid start" of the recorded process, its descendants, and what is left of its session, parents first.
members() {
  read_record "$1" || return 0
  local leader=$PID leader_start=$PID_START path pid
  local -A parent=() session=() start=()
  for path in /proc/[0-9]*; do
    pid=${path#/proc/}
    if proc_stat "$pid" && running; then
      parent[$pid]=$PROC_PARENT session[$pid]=$PROC_SESSION start[$pid]=$PROC_START
    fi
  done
  # Somebody else has our pid now. A pid is not given away while a session bears it, so none of ours is left.
  [ -z "${start[$leader]:-}" ] || [ "${start[$leader]}" = "$leader_start" ] || return 0
  local -A ours=()
  for pid in "${!start[@]}"; do
    if [ "$pid" = "$leader" ] || [ "${session[$pid]}" = "$leader" ] && [ "${start[$pid]}" -ge "$leader_start" ]; then
      ours[$pid]=1
    fi
  done
  local grown=true
  while $grown; do
    grown=false
    for pid in "${!start[@]}"; do
      if [ -z "${ours[$pid]:-}" ] && [ -n "${ours[${parent[$pid]}]:-}" ]; then
        ours[$pid]=1
        grown=true
      fi
    done
  done
  [ -z "${ours[$leader]:-}" ] || printf '%s %s\n' "$leader" "${start[$leader]}"
  for pid in "${!ours[@]}"; do
    [ "$pid" = "$leader" ] || printf '%s %s\n' "$pid" "${start[$pid]}"
  done
}

# signal_all SIGNAL ROLE: to every member.
signal_all() {
  local pid start
  while read -r pid start; do
    if alive "$pid" "$start"; then kill "-$1" "$pid" 2>/dev/null || true; fi
  done < <(members "$2")
}

# gone SECONDS PID START: waits until that process has ended.
gone() {
  local end=$((SECONDS + $1))
  while alive "$2" "$3"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.05
  done
}

# kill_tree ROLE: SIGKILL to all members, and waits until they are gone.
kill_tree() {
  read_record "$1" || return 0
  # Stopped first, so that it starts no child while we look.
  if owned "$1"; then kill -STOP "$PID" 2>/dev/null || true; fi
  local pid start list
  list=$(members "$1")
  while read -r pid start; do
    if [ -n "$pid" ] && alive "$pid" "$start"; then kill -KILL "$pid" 2>/dev/null || true; fi
  done <<< "$list"
  while read -r pid start; do
    [ -z "$pid" ] || gone 10 "$pid" "$start" || die "$NAME: process $pid does not end after SIGKILL"
  done <<< "$list"
}

# end_tree ROLE SIGNAL SECONDS: asks the process to end, then kills what is left.
end_tree() {
  if owned "$1"; then
    local pid=$PID start=$PID_START
    kill "-$2" "$pid" 2>/dev/null || true
    signal_all CONT "$1"
    gone "$3" "$pid" "$start" || say "$NAME: still there $3 s after SIG$2, killing it"
  fi
  kill_tree "$1"
  rm -f "$STATE/$1.pid"
}

# spawn ROLE COMMAND…: a session of its own, niced, with a clean environment, no inherited descriptor, and a log.
spawn() {
  local role=$1
  shift
  mkdir -p "$STATE/home" "$STATE/tmp"
  (
    record "$role" "$BASHPID"
    cd /
    local fd
    for fd in "/proc/$BASHPID/fd"/*; do
      fd=${fd##*/}
      [ "$fd" -le 2 ] || eval "exec $fd>&-" 2>/dev/null || true
    done
    ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"
    exec setsid nice -n "$NICE" env -i PATH="$PATH" LANG=C.UTF-8 TZ=UTC HOME="$STATE/home" TMPDIR="$STATE/tmp" "$@"
  ) < /dev/null >> "$STATE/log" 2>&1 &
  record "$role" "$!"
  disown "$!"
}
