# shellcheck shell=bash disable=SC2153
# Ports: chosen free at the first `up`, kept in $STATE/ports, and claimed, so that another state directory takes others.
# They lie below the range the kernel takes for outgoing connections: otherwise a port could be gone while its server is down.

PORT_CLAIMS=/tmp/trunkline-brokers-ports-$UID

# port NAME: the number that belongs to it.
port() {
  local name number
  while read -r name number; do
    if [ "$name" = "$1" ]; then printf '%s' "$number"; return 0; fi
  done < "$STATE/ports"
  die "$NAME has no port named $1"
}

# listening PORT: whether any process of this network listens there.
listening() {
  local hex
  printf -v hex '%04X' "$1"
  grep -qsE "^ *[0-9]+: [0-9A-F]+:$hex [0-9A-F]+:[0-9A-F]+ 0A " /proc/net/tcp /proc/net/tcp6
}

# claimed PORT: whether another state directory holds it. Claims of directories that are gone do not count.
claimed() {
  local owner name number
  [ -f "$PORT_CLAIMS/$1" ] || return 1
  read -r owner < "$PORT_CLAIMS/$1" || return 1
  [ "$owner" != "$STATE" ] && [ -f "$owner/ports" ] || return 1
  while read -r name number; do [ "$number" != "$1" ] || return 0; done < "$owner/ports"
  return 1
}

# allocate_ports: keeps the ports that are there and free, chooses those that are not.
allocate_ports() {
  (umask 077 && mkdir -p "$PORT_CLAIMS")
  [ -O "$PORT_CLAIMS" ] || die "$PORT_CLAIMS belongs to somebody else"
  (
    flock -w 60 8 || die "somebody holds $PORT_CLAIMS/lock"
    local name number low tries base=20000 span=8000
    read -r low _ < /proc/sys/net/ipv4/ip_local_port_range
    if [ "$low" -lt 28000 ]; then base=61000 span=4000; fi
    : > "$STATE/ports.new"
    for name in $(ports); do
      number=
      if [ -f "$STATE/ports" ]; then number=$(awk -v name="$name" '$1 == name { print $2 }' "$STATE/ports"); fi
      tries=0
      while [ -z "$number" ] || listening "$number" || claimed "$number" || grep -q " $number\$" "$STATE/ports.new"; do
        [ -z "$number" ] || [ "$tries" -gt 0 ] || say "$NAME: port $number is taken by another process, choosing another"
        tries=$((tries + 1))
        [ "$tries" -lt 1000 ] || die "found no free port from $base to $((base + span - 1))"
        number=$((base + SRANDOM % span))
      done
      printf '%s %s\n' "$name" "$number" >> "$STATE/ports.new"
      printf '%s\n' "$STATE" > "$PORT_CLAIMS/$number"
    done
    if [ -f "$STATE/ports" ]; then
      while read -r name number; do
        grep -q " $number\$" "$STATE/ports.new" || rm -f "${PORT_CLAIMS:?}/$number"
      done < "$STATE/ports"
    fi
    mv "$STATE/ports.new" "$STATE/ports"
  ) 8>> "$PORT_CLAIMS/lock"
}

# release_ports: gives the claims back.
release_ports() {
  local name number owner
  [ -f "$STATE/ports" ] || return 0
  while read -r name number; do
    if [ -f "$PORT_CLAIMS/$number" ] && read -r owner < "$PORT_CLAIMS/$number" && [ "$owner" = "$STATE" ]; then
      rm -f "${PORT_CLAIMS:?}/$number"
    fi
  done < "$STATE/ports"
}
