# shellcheck shell=bash disable=SC2153
# Getting the servers: Debian packages, jars through Maven, programs through Go. What is there already is left alone.

SEARCH_PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/lib/rabbitmq/bin:/usr/local/go/bin

has() { PATH=$SEARCH_PATH type -P "$1" > /dev/null; }

# fetch_all NAME…: the packages of all in one go, then the rest side by side.
fetch_all() {
  local name need package index packages=() pids=() failed=()
  mkdir -p "$CACHE"
  for name in "$@"; do
    while read -r need package; do
      [ -n "$need" ] || continue
      if ! has "$need" && [[ " ${packages[*]} " != *" $package "* ]]; then packages+=("$package"); fi
    done < <(printf 'openssl openssl\ncurl curl\n'; load "$name"; needs)
  done
  if [ ${#packages[@]} -gt 0 ]; then install_packages "${packages[@]}"; fi
  for name in "$@"; do
    ( load "$name"; check; fetch ) &
    pids+=("$!")
  done
  for index in "${!pids[@]}"; do
    wait "${pids[$index]}" || failed+=("${@:index+1:1}")
  done
  [ ${#failed[@]} -eq 0 ] || die "could not get what is needed for: ${failed[*]}"
}

# install_packages PACKAGE…: from the distribution. Lists are updated only when the first try fails.
install_packages() {
  local sudo=() log=$CACHE/packages.log
  has apt-get || die "missing: $*. There is no apt-get here: install them by hand"
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2> /dev/null || die "missing: $*. Install them as root: apt-get install $*"
    sudo=(sudo -n)
  fi
  (
    flock -w 1200 8 || die "another installation does not end ($CACHE/packages.lock)"
    say "installing packages: $*"
    # Packages of servers start them; these are not to be started. A policy that is there already is left as it is.
    local policy=/usr/sbin/policy-rc.d ours=false
    if [ ! -e "$policy" ]; then
      printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" > /dev/null
      "${sudo[@]}" chmod 755 "$policy"
      ours=true
    fi
    local apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive timeout 1200 apt-get -q -y -o DPkg::Lock::Timeout=600)
    local status=0
    "${apt[@]}" install --no-install-recommends "$@" > "$log" 2>&1 < /dev/null || {
      # The lists are missing or old.
      "${apt[@]}" update >> "$log" 2>&1 < /dev/null || true
      "${apt[@]}" install --no-install-recommends "$@" >> "$log" 2>&1 < /dev/null || status=$?
    }
    if $ours; then "${sudo[@]}" rm -f "$policy"; fi
    if [ "$status" -ne 0 ]; then
      tail -n 5 "$log" >&2
      die "the package archive that apt is set up with did not give: $* (see $log)"
    fi
  ) 8>> "$CACHE/packages.lock"
}

# at_least WANTED HAVE: compares versions.
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

jars_key() { { cat "$HERE/$1/pom.xml"; printf '%s\n' "${@:2}"; } | sha256sum | cut -c 1-12; }
# jars_dir FOLDER [-Dname=value…]: where the jars of brokers.d/FOLDER/pom.xml lie once fetch_jars has fetched them.
jars_dir() { printf '%s/%s-%s' "$CACHE" "$1" "$(jars_key "$@")"; }
fetch_jars() {
  local folder=$1 target work log=$CACHE/$1.log
  target=$(jars_dir "$@")
  [ ! -d "$target" ] || return 0
  # One at a time: Maven's local repository is not made for two.
  (
    flock -w 1800 8 || die "another Maven run does not end ($CACHE/maven.lock)"
    [ ! -d "$target" ] || exit 0
    say "$NAME: fetching jars with Maven"
    work=$(mktemp -d "$CACHE/.maven.XXXXXX")
    cp "$HERE/$folder/pom.xml" "$work/pom.xml"
    if ! timeout 1200 mvn -B -C -f "$work/pom.xml" "${@:2}" \
      org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
      -DoutputDirectory="$work/lib" > "$log" 2>&1 < /dev/null; then
      grep -m 3 ERROR "$log" >&2 || tail -n 5 "$log" >&2
      rm -rf "$work"
      die "the Maven repository that mvn is set up with did not give what $folder/pom.xml names (see $log)"
    fi
    mv "$work/lib" "$target"
    rm -rf "$work"
  ) 8>> "$CACHE/maven.lock"
}

# go_dir FOLDER: where its programs lie. The key is the folder's content; go.sum in it pins every source.
go_dir() { printf '%s/%s-%s' "$CACHE" "$1" "$(cat "$HERE/$1"/go.{mod,sum} "$HERE/$1"/*.go | sha256sum | cut -c 1-12)"; }
# fetch_go FOLDER PACKAGE…: builds packages in the module brokers.d/FOLDER.
fetch_go() {
  local folder=$1 target work log=$CACHE/$1.log
  shift
  target=$(go_dir "$folder")
  [ ! -d "$target" ] || return 0
  (
    flock -w 1800 8 || die "another build does not end ($CACHE/$folder.lock)"
    [ ! -d "$target" ] || exit 0
    check_go
    say "$NAME: building with Go"
    work=$(mktemp -d "$CACHE/.go.XXXXXX")
    if ! (cd "$HERE/$folder" && PATH=$SEARCH_PATH GOWORK=off GOFLAGS=-mod=readonly timeout 1200 \
      go build -trimpath -buildvcs=false -o "$work/" "$@") > "$log" 2>&1 < /dev/null; then
      tail -n 5 "$log" >&2
      rm -rf "$work"
      die "go could not build $folder ($(PATH=$SEARCH_PATH go version); see $log). Where a module is missing above, the module" \
        "proxy that \`go env GOPROXY\` names did not give it"
    fi
    mv "$work" "$target"
    chmod 755 "$target"
  ) 8>> "$CACHE/$folder.lock"
}

# python_dir FOLDER: where the packages of brokers.d/FOLDER/requirements.txt lie; PYTHONPATH for what uses them.
python_dir() { printf '%s/%s-python-%s' "$CACHE" "$1" "$(sha256sum < "$HERE/$1/requirements.txt" | cut -c 1-12)"; }
fetch_python() {
  local folder=$1 target work log=$CACHE/$1-python.log
  target=$(python_dir "$folder")
  [ ! -d "$target" ] || return 0
  (
    flock -w 1800 8 || die "another pip run does not end ($CACHE/$folder-python.lock)"
    [ ! -d "$target" ] || exit 0
    say "$NAME: fetching packages with pip"
    work=$(mktemp -d "$CACHE/.python.XXXXXX")
    if ! PATH=$SEARCH_PATH timeout 600 python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
      --target "$work/lib" -r "$HERE/$folder/requirements.txt" > "$log" 2>&1 < /dev/null; then
      tail -n 5 "$log" >&2
      rm -rf "$work"
      die "the package index that pip is set up with did not give what $folder/requirements.txt names (see $log)"
    fi
    mv "$work/lib" "$target"
    rm -rf "$work"
  ) 8>> "$CACHE/$folder-python.lock"
}

# check_java, check_go: the version is what matters, not that there is one.
check_java() {
  local have
  have=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
  at_least 17 "${have:-0}" || die "$NAME needs Java 17 or later; java says ${have:-nothing}. Put a newer one on the PATH"
}
check_go() {
  local have
  has go || die "$NAME needs Go 1.25 or later, and there is none. Debian 12's package golang is 1.19, too old: install Go itself"
  have=$(PATH=$SEARCH_PATH GOTOOLCHAIN=local go version | sed -n 's/.* go\([0-9.]*\).*/\1/p')
  at_least 1.25 "$have" || die "$NAME needs Go 1.25 or later; go says $have. Debian 12's package golang is 1.19, too old: install Go itself"
}
