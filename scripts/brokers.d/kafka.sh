# shellcheck shell=bash disable=SC2034
# Apache Kafka, one node, KRaft. Two listeners: plain, where everybody may do all, and SASL_SSL with PLAIN and SCRAM.

KAFKA_OPTIONS=()
[ -z "${TRUNKLINE_BROKERS_KAFKA_VERSION:-}" ] || KAFKA_OPTIONS=("-Dkafka.version=$TRUNKLINE_BROKERS_KAFKA_VERSION")

needs() {
  printf 'java openjdk-17-jre-headless\nkcat kcat\n' # kcat is the tests' foreign client
  [ -d "$(jars_dir kafka "${KAFKA_OPTIONS[@]}")" ] || printf 'mvn maven\n'
}
check() { check_java; }
fetch() { fetch_jars kafka "${KAFKA_OPTIONS[@]}"; }
version() {
  local jar
  for jar in "$(jars_dir kafka "${KAFKA_OPTIONS[@]}")"/kafka_2.13-*.jar; do jar=${jar##*_2.13-}; printf '%s' "${jar%.jar}"; done
}
ports() { printf '%s\n' plain secure controller; }

kafka_java() {
  java "-Djava.io.tmpdir=$STATE/tmp" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -Xmx256m -XX:TieredStopAtLevel=1 \
    -cp "$(jars_dir kafka "${KAFKA_OPTIONS[@]}")/*" "$@"
}

configure() {
  local password limited module=org.apache.kafka.common.security
  password=$(secret password) limited=$(secret limited)
  mkdir -p "$STATE/home" "$STATE/tmp"
  (umask 077 && cat > "$STATE/server.properties") <<EOF
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:$(port controller)
listeners=PLAINTEXT://127.0.0.1:$(port plain),SASL_SSL://127.0.0.1:$(port secure),CONTROLLER://127.0.0.1:$(port controller)
advertised.listeners=PLAINTEXT://127.0.0.1:$(port plain),SASL_SSL://127.0.0.1:$(port secure)
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$STATE/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
# The default asks for 128 MB of the heap.
log.cleaner.dedupe.buffer.size=8388608
# A broker that was killed is let back in when its old session has ended: 17 s after a start with the defaults, 6 with these.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

ssl.keystore.type=PEM
ssl.keystore.location=$DIR/tls/server-keystore.pem
ssl.truststore.type=PEM
ssl.truststore.location=$DIR/tls/ca.pem
ssl.client.auth=requested
listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_ssl.plain.sasl.jaas.config=$module.plain.PlainLoginModule required user_$TEST_USER="$password" user_$LIMITED_USER="$limited";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=$module.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=$module.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:$TEST_USER
EOF
  if [ ! -f "$STATE/data/meta.properties" ]; then
    local scram=() mechanism
    for mechanism in SCRAM-SHA-256 SCRAM-SHA-512; do
      scram+=(--add-scram "$mechanism=[name=$TEST_USER,password=$password]")
      scram+=(--add-scram "$mechanism=[name=$LIMITED_USER,password=$limited]")
    done
    rm -rf "$STATE/data"
    kafka_java kafka.tools.StorageTool format --standalone "--cluster-id=$(openssl rand 16 | basenc --base64url | tr -d =)" \
      -c "$STATE/server.properties" "${scram[@]}" > "$STATE/format.log" 2>&1 || { cat "$STATE/format.log" >&2; die "kafka: format failed"; }
  fi
  COMMAND=(java -Xms128m -Xmx512m "-Djava.io.tmpdir=$STATE/tmp" "-XX:ErrorFile=$STATE/hs_err_%p.log"
    -Dorg.slf4j.simpleLogger.showDateTime=true -Dorg.slf4j.simpleLogger.showLogName=false
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"
    -cp "$(jars_dir kafka "${KAFKA_OPTIONS[@]}")/*" kafka.Kafka "$STATE/server.properties")
}

# A Metadata request (key 3, version 4, no topics): the answer counts the brokers that take part.
answers() {
  local reply
  exec 7<> "/dev/tcp/127.0.0.1/$(port plain)" || return 1
  # length 15; key 3; version 4; correlation 1; client id null; no topics; create none
  printf '\0\0\0\017\0\003\0\004\0\0\0\001\377\377\0\0\0\0\0' >&7
  # length, correlation, throttle time, number of brokers: 16 bytes
  reply=$(timeout 5 head -c 16 <&7 | od -An -v -tx1 | tr -d ' \n')
  exec 7>&-
  [ "${reply:8:8}" = 00000001 ] && [ "${reply:24:8}" = 00000001 ] && speaks_tls "$(port secure)"
}

# The limited user may use what begins with its name, and create nothing.
prepare() {
  local acl=(org.apache.kafka.tools.AclCommand --bootstrap-server "127.0.0.1:$(port plain)" --add
    --allow-principal "User:$LIMITED_USER" --resource-pattern-type prefixed)
  kafka_java "${acl[@]}" --operation Read --operation Write --operation Describe --operation DescribeConfigs --topic "$LIMITED_USER" &
  kafka_java "${acl[@]}" --operation Read --group "$LIMITED_USER"
  wait "$!"
}

settings() {
  setting KAFKA "127.0.0.1:$(port plain)"
  setting KAFKA_TLS "127.0.0.1:$(port secure)"
  setting KAFKA_VERSION "$(version)"
}
