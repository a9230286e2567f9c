# shellcheck shell=bash disable=SC2034
# A throwaway authority, certificates and passwords, made at the first `up` and gone with the state directory.

TEST_USER=trunkline
LIMITED_USER=limited

# make_secrets: once per state directory. Two users on every secured listener: one may do all, one little.
make_secrets() {
  mkdir -p "$DIR"
  (
    flock -w 60 8 || die "somebody holds $DIR/secrets.lock"
    [ -d "$DIR/tls" ] && [ -f "$DIR/secrets" ] && exit 0
    local work log=$DIR/tls.log
    work=$(mktemp -d "$DIR/.tls.XXXXXX")
    (
      umask 077
      authority "$work/ca" 'Trunkline test authority'
      authority "$work/other-ca" 'Trunkline other authority'
      certificate "$work" server localhost 'subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1' serverAuth
      certificate "$work" client "$TEST_USER" "subjectAltName=DNS:$TEST_USER" clientAuth
      cat "$work/server.key" "$work/server.pem" > "$work/server-keystore.pem"
      printf 'password %s\nlimited %s\ntoken %s\n' "$(openssl rand -hex 12)" "$(openssl rand -hex 12)" \
        "$(openssl rand -hex 16)" > "$DIR/secrets"
    ) > "$log" 2>&1 || { cat "$log" >&2; die "openssl could not make the certificates"; }
    rm -f "$work"/*.srl "$work"/*.csr "$work"/*.ext
    # The private keys stay 0600; the directory is open to a server that runs as another user.
    chmod 755 "$work"
    chmod 644 "$work"/ca.pem "$work"/other-ca.pem "$work"/server.pem
    rm -rf "$DIR/tls"
    mv "$work" "$DIR/tls"
  ) 8>> "$DIR/secrets.lock"
}

# authority FILE NAME: a certificate that signs others.
authority() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$2" \
    -keyout "$1.key" -out "$1.pem" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
}

# certificate FOLDER FILE NAME NAMES USE: signed by the folder's authority.
certificate() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$3" -keyout "$1/$2.key" -out "$1/$2.csr"
  printf 'basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=%s\n%s\n' "$5" "$4" > "$1/$2.ext"
  openssl x509 -req -in "$1/$2.csr" -CA "$1/ca.pem" -CAkey "$1/ca.key" -CAcreateserial -days 3650 \
    -extfile "$1/$2.ext" -out "$1/$2.pem"
}

# secret NAME: password, limited or token.
secret() { awk -v name="$1" '$1 == name { print $2 }' "$DIR/secrets"; }

# speaks_tls PORT: whether a handshake there ends in a certificate of our authority.
speaks_tls() {
  timeout 10 openssl s_client -connect "127.0.0.1:$1" -CAfile "$DIR/tls/ca.pem" -verify_return_error \
    -verify_ip 127.0.0.1 < /dev/null > /dev/null 2>&1
}
