# shellcheck shell=bash disable=SC2034
# ElasticMQ for AWS SQS. It checks no credentials.

needs() {
  printf 'java openjdk-17-jre-headless\n'
  [ -d "$(jars_dir sqs)" ] || printf 'mvn maven\n'
  [ -d "$(python_dir sqs)" ] || printf 'pip3 python3-pip\n'
}
check() { check_java; }
fetch() { fetch_jars sqs && fetch_python sqs; }
version() {
  local jar
  for jar in "$(jars_dir sqs)"/elasticmq-server_2.13-*.jar; do jar=${jar##*_2.13-}; printf '%s' "${jar%.jar}"; done
}
ports() { printf '%s\n' http; }

configure() {
  mkdir -p "$STATE/data" "$STATE/tmp"
  # WRITE_DELAY: without it H2 keeps what is confirmed in memory for half a second.
  cat > "$STATE/elasticmq.conf" <<EOF
include classpath("application.conf")
node-address { protocol = http, host = "127.0.0.1", port = $(port http), context-path = "" }
rest-sqs { enabled = true, bind-hostname = "127.0.0.1", bind-port = $(port http), sqs-limits = strict }
rest-stats { enabled = false }
aws { region = us-east-1, accountId = 000000000000 }
messages-storage { enabled = true, uri = "jdbc:h2:$STATE/data/sqs;WRITE_DELAY=0;DB_CLOSE_ON_EXIT=FALSE" }
EOF
  COMMAND=(java -Xms64m -Xmx384m -XX:+UseSerialGC "-Djava.io.tmpdir=$STATE/tmp" "-XX:ErrorFile=$STATE/hs_err_%p.log"
    "-Dconfig.file=$STATE/elasticmq.conf" -cp "$(jars_dir sqs)/*" org.elasticmq.server.Main)
}

answers() {
  curl -sf --noproxy '*' -m 5 "http://127.0.0.1:$(port http)/" -d Action=ListQueues | grep -q ListQueuesResponse
}

settings() {
  setting SQS "http://127.0.0.1:$(port http)"
  setting SQS_REGION us-east-1
  setting SQS_ACCOUNT 000000000000
  setting SQS_BOTO3 "$(python_dir sqs)"
  setting SQS_VERSION "ElasticMQ $(version)"
}
