//! What librdkafka and the broker say, in the product's codes. Never a value of the config.

use std::fmt;

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Kafka;

use crate::error::{Code, Error};
use crate::provider::SendError;

/// A failure as librdkafka knows it.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) code: Kafka,
    /// What was said, if it says more than the code.
    said: String,
}

impl Fault {
    pub(super) fn new(code: Kafka, said: impl Into<String>) -> Self {
        Fault { code, said: said.into() }
    }

    /// Whether the topic is said to be missing. A broker that has just started says so for a moment.
    pub(super) fn is_missing_topic(&self) -> bool {
        matches!(self.code, Kafka::UnknownTopicOrPartition | Kafka::UnknownTopic)
    }

    /// Whether the same call may succeed a moment later: coordinators move and load, leaders change.
    pub(super) fn passes(&self) -> bool {
        matches!(
            self.code,
            Kafka::CoordinatorLoadInProgress
                | Kafka::CoordinatorNotAvailable
                | Kafka::NotCoordinator
                | Kafka::RebalanceInProgress
                | Kafka::LeaderNotAvailable
                | Kafka::NotLeaderForPartition
                | Kafka::FencedLeaderEpoch
                | Kafka::UnknownLeaderEpoch
                | Kafka::NetworkException
                | Kafka::RequestTimedOut
                | Kafka::BrokerTransportFailure
                | Kafka::OperationTimedOut
                | Kafka::WaitingForCoordinator
                | Kafka::BrokerNotAvailable
                | Kafka::ReplicaNotAvailable
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.said.is_empty() { write!(f, "{}", self.code) } else { write!(f, "{} ({})", self.said, self.code) }
    }
}

impl From<KafkaError> for Fault {
    fn from(error: KafkaError) -> Self {
        match error {
            // Its text would quote the value.
            KafkaError::ClientConfig(_, _, name, _) => {
                Fault::new(Kafka::InvalidArgument, format!("librdkafka does not take the value of the property '{name}'"))
            }
            other => {
                let code = other.rdkafka_error_code().unwrap_or(Kafka::Fail);
                let said = match other {
                    KafkaError::ClientCreation(said) | KafkaError::Subscription(said) | KafkaError::Seek(said) => said,
                    _ => String::new(),
                };
                Fault::new(code, said)
            }
        }
    }
}

/// The fault in the product's code, with what to do about it.
pub(super) fn error(doing: &str, fault: &Fault) -> Error {
    let (code, reason, next) = kind(fault);
    let error = Error::new(code, format!("{doing}: {fault}")).reason(reason);
    let error = if code == Code::PublishFailed || code == Code::ConnectionFailed { error.with_retryable(true) } else { error };
    match next {
        "" => error,
        next => error.next(next),
    }
}

fn kind(fault: &Fault) -> (Code, &'static str, &'static str) {
    match fault.code {
        Kafka::Authentication | Kafka::SaslAuthenticationFailed => {
            (Code::AuthenticationFailed, "sasl", "check `sasl.username`, `sasl.password` and `sasl.mechanism`")
        }
        Kafka::UnsupportedSASLMechanism | Kafka::IllegalSASLState => {
            (Code::AuthenticationFailed, "sasl_mechanism", "choose a `sasl.mechanism` that the listener has enabled")
        }
        Kafka::SSL => (
            Code::ConnectionFailed,
            "tls",
            "check that the port is the TLS listener, that `tls.ca` holds the authority of its certificate, and the host's name in it",
        ),
        Kafka::TopicAuthorizationFailed => {
            (Code::AuthenticationFailed, "permission", "allow this user Read, Write, Describe and DescribeConfigs on the topic")
        }
        Kafka::GroupAuthorizationFailed => {
            (Code::AuthenticationFailed, "permission", "allow this user Read on the group, and on the group with `.trunkline` added")
        }
        Kafka::ClusterAuthorizationFailed => (
            Code::AuthenticationFailed,
            "permission",
            "allow this user Create on the topic, or create it beforehand and set `create: false`",
        ),
        Kafka::UnknownTopicOrPartition | Kafka::UnknownTopic => {
            (Code::TopicNotFound, "topic_missing", "create the topic on the broker, or open the route again so that it is created")
        }
        Kafka::UnknownPartition => (Code::PublishFailed, "shards_changed", "the topic has fewer partitions than the catalogue says"),
        Kafka::MessageSizeTooLarge | Kafka::InvalidMessageSize => {
            (Code::PayloadTooLarge, "message_too_large", "send less, or raise `max.message.bytes` of the topic")
        }
        Kafka::InvalidArgument | Kafka::InvalidConfig | Kafka::UnknownProtocol => (Code::ConfigInvalid, "config", ""),
        Kafka::InvalidReplicationFactor => {
            (Code::ConfigInvalid, "replication", "give a `replication` that is not above the number of brokers")
        }
        Kafka::PolicyViolation => {
            (Code::ConfigInvalid, "policy", "the broker's policy for new topics refuses it: create the topic by hand")
        }
        Kafka::OperationTimedOut | Kafka::RequestTimedOut => (Code::Timeout, "timeout", "check that the broker answers"),
        Kafka::NonEmptyGroup | Kafka::GroupSubscribedToTopic => (Code::InUse, "group_has_members", "close the group's consumers first"),
        Kafka::GroupIdNotFound => (Code::GroupNotFound, "group_missing", ""),
        Kafka::NotEnoughReplicas | Kafka::NotEnoughReplicasAfterAppend => {
            (Code::PublishFailed, "replicas_missing", "too few replicas are in sync: look at the brokers that are down")
        }
        Kafka::Fatal | Kafka::OutOfOrderSequenceNumber | Kafka::UnknownProducerId | Kafka::InvalidProducerEpoch => {
            (Code::PublishFailed, "producer_fatal", "produce it again: the idempotent producer was replaced")
        }
        Kafka::KafkaStorageError => (Code::PublishFailed, "broker_disk", "look at the broker's disk"),
        Kafka::UnsupportedVersion | Kafka::UnsupportedFeature | Kafka::NotImplemented => {
            (Code::CapabilityUnsupported, "broker_version", "use Kafka 2.4 or later")
        }
        Kafka::BrokerTransportFailure
        | Kafka::AllBrokersDown
        | Kafka::Resolve
        | Kafka::NetworkException
        | Kafka::BrokerNotAvailable
        | Kafka::LeaderNotAvailable
        | Kafka::NotLeaderForPartition
        | Kafka::CoordinatorNotAvailable
        | Kafka::NotCoordinator
        | Kafka::CoordinatorLoadInProgress
        | Kafka::WaitingForCoordinator => (Code::ConnectionFailed, "unreachable", "check `brokers`, the port, and that the broker runs"),
        _ => (Code::ConnectionFailed, "kafka", ""),
    }
}

/// A message that was not confirmed.
pub(super) fn unsent(fault: &Fault, ambiguous: bool) -> SendError {
    let (error, retryable) = match kind(fault).0 {
        Code::PayloadTooLarge | Code::AuthenticationFailed | Code::ConfigInvalid | Code::CapabilityUnsupported => {
            (error("the broker refused a message", fault), false)
        }
        // A topic may be unknown to a broker that has just started.
        Code::TopicNotFound => (error("the broker does not know the topic of a message", fault), true),
        _ => {
            let (_, reason, next) = kind(fault);
            let reason = if fault.code == Kafka::MessageTimedOut { "timeout" } else { reason };
            let error = Error::new(Code::PublishFailed, format!("a message was not confirmed: {fault}")).reason(reason);
            (if next.is_empty() { error } else { error.next(next) }, fault.code != Kafka::UnknownPartition)
        }
    };
    SendError { error: error.with_retryable(retryable), retryable, ambiguous }
}

/// The connection, or the subscription, was closed.
pub(super) fn closed() -> Error {
    Error::new(Code::Closed, "this connection is closed")
}
