//! librdkafka where its Rust wrapper does not reach: the admin calls the wrapper lacks or runs on a client of their own, and
//! commits whose answer is waited for within a limit. This file and `queue` are the only ones of this provider with `unsafe`.
//!
//! The rule of librdkafka this file keeps: what a result points to lives as long as its event.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::{self, NonNull};
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::bindings as sys;
use rdkafka::types::RDKafkaErrorCode as ErrorCode;

use super::error::Fault;

type Result<T, E = Fault> = std::result::Result<T, E>;

/// One partition of an answer.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) topic: String,
    pub(super) partition: i32,
    /// Negative if there is none.
    pub(super) offset: i64,
    pub(super) metadata: Vec<u8>,
    pub(super) code: ErrorCode,
}

/// A client, for the calls below. Valid as long as the client it was taken from, which the caller keeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rk(pub(super) *mut sys::rd_kafka_t);

// SAFETY: librdkafka's client handle may be used from any thread.
unsafe impl Send for Rk {}
// SAFETY: as above.
unsafe impl Sync for Rk {}

impl Rk {
    pub(super) fn new(ptr: *mut sys::rd_kafka_t) -> Self {
        Rk(ptr)
    }
}

fn text(ptr: *const c_char) -> String {
    if ptr.is_null() {
        return String::new();
    }
    // SAFETY: librdkafka's texts end in a zero byte and outlive this call.
    unsafe { CStr::from_ptr(ptr) }.to_string_lossy().into_owned()
}

pub(super) fn c_text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Fault::new(ErrorCode::InvalidArgument, "a name with a zero byte"))
}

pub(super) fn millis(wait: Duration) -> c_int {
    c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX)
}

fn parts(list: *const sys::rd_kafka_topic_partition_list_t) -> Vec<Part> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: a list of librdkafka has `cnt` elements, and outlives this call.
    let elements = unsafe {
        let list = &*list;
        if list.elems.is_null() { &[] } else { std::slice::from_raw_parts(list.elems, usize::try_from(list.cnt).unwrap_or(0)) }
    };
    elements.iter().map(part).collect()
}

fn part(of: &sys::rd_kafka_topic_partition_t) -> Part {
    let metadata = if of.metadata.is_null() {
        Vec::new()
    } else {
        // SAFETY: `metadata` has `metadata_size` bytes.
        unsafe { std::slice::from_raw_parts(of.metadata.cast::<u8>(), of.metadata_size) }.to_vec()
    };
    Part { topic: text(of.topic), partition: of.partition, offset: of.offset, metadata, code: of.err.into() }
}

/// The answer of an admin call.
struct Answer(NonNull<sys::rd_kafka_event_t>);

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: the event is ours and nothing of it is kept.
        unsafe { sys::rd_kafka_event_destroy(self.0.as_ptr()) }
    }
}

/// Submits an admin call and waits for its answer, at most `wait`. It goes to this broker, else to where librdkafka sends it:
/// calls about a group must name one, see `desk`.
fn ask(
    rk: Rk,
    op: sys::rd_kafka_admin_op_t,
    broker: Option<i32>,
    wait: Duration,
    submit: impl FnOnce(*const sys::rd_kafka_AdminOptions_t, *mut sys::rd_kafka_queue_t),
) -> Result<Answer> {
    let mut error = [0 as c_char; 256];
    // SAFETY: the options are destroyed below; the queue is let go after its answer was taken, and an answer that comes
    // later is dropped by librdkafka with the queue.
    unsafe {
        let options = sys::rd_kafka_AdminOptions_new(rk.0, op);
        sys::rd_kafka_AdminOptions_set_request_timeout(options, millis(wait), error.as_mut_ptr(), error.len());
        if let Some(broker) = broker {
            sys::rd_kafka_AdminOptions_set_broker(options, broker, error.as_mut_ptr(), error.len());
        }
        let queue = sys::rd_kafka_queue_new(rk.0);
        submit(options, queue);
        let event = sys::rd_kafka_queue_poll(queue, millis(wait + Duration::from_millis(500)));
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_AdminOptions_destroy(options);
        let Some(event) = NonNull::new(event).map(Answer) else {
            return Err(Fault::new(ErrorCode::OperationTimedOut, "no answer in time"));
        };
        match sys::rd_kafka_event_error(event.0.as_ptr()) {
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(event),
            code => Err(Fault::new(code.into(), text(sys::rd_kafka_event_error_string(event.0.as_ptr())))),
        }
    }
}

/// The brokers of the cluster, as any of them knows them.
pub(super) fn brokers(rk: Rk, wait: Duration) -> Result<Vec<(i32, String)>> {
    let mut metadata: *const sys::rd_kafka_metadata = ptr::null();
    // SAFETY: without a topic only the brokers are asked for; the answer is destroyed when it was read.
    unsafe {
        let code = sys::rd_kafka_metadata(rk.0, 0, ptr::null_mut(), &raw mut metadata, millis(wait));
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(Fault::new(code.into(), "the cluster gave no answer"));
        }
        let count = usize::try_from((*metadata).broker_cnt).unwrap_or(0);
        let brokers = (0..count).map(|at| &*(*metadata).brokers.add(at));
        let brokers = brokers.map(|broker| (broker.id, format!("{}:{}", text(broker.host), broker.port))).collect();
        sys::rd_kafka_metadata_destroy(metadata);
        Ok(brokers)
    }
}

/// Looks where a topic's partitions lie now: what a client knows of it may be older than a broker's restart.
pub(super) fn refresh(rk: Rk, topic: &str, wait: Duration) -> Result<()> {
    let name = c_text(topic)?;
    let mut metadata: *const sys::rd_kafka_metadata = ptr::null();
    // SAFETY: handle and answer are destroyed below.
    unsafe {
        let topic = sys::rd_kafka_topic_new(rk.0, name.as_ptr(), ptr::null_mut());
        if topic.is_null() {
            return Err(Fault::new(sys::rd_kafka_last_error().into(), "the topic cannot be looked at"));
        }
        let code = sys::rd_kafka_metadata(rk.0, 0, topic, &raw mut metadata, millis(wait));
        sys::rd_kafka_topic_destroy(topic);
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(Fault::new(code.into(), "the cluster gave no answer"));
        }
        sys::rd_kafka_metadata_destroy(metadata);
    }
    Ok(())
}

/// Creates a topic; the broker's own replication if none is given.
pub(super) fn create_topic(
    rk: Rk,
    name: &str,
    partitions: u32,
    replication: Option<u32>,
    config: &[(&str, &str)],
    wait: Duration,
) -> Result<()> {
    let name = c_text(name)?;
    let count = |n: u32| c_int::try_from(n).unwrap_or(c_int::MAX);
    let mut error = [0 as c_char; 256];
    // SAFETY: the new topic is destroyed below; texts outlive the calls they are given to.
    unsafe {
        let replication = replication.map_or(-1, count);
        let topic = sys::rd_kafka_NewTopic_new(name.as_ptr(), count(partitions), replication, error.as_mut_ptr(), error.len());
        if topic.is_null() {
            return Err(Fault::new(ErrorCode::InvalidArgument, text(error.as_ptr())));
        }
        for (key, value) in config {
            let (key, value) = (c_text(key)?, c_text(value)?);
            sys::rd_kafka_NewTopic_set_config(topic, key.as_ptr(), value.as_ptr());
        }
        let mut topics = [topic];
        let answer = ask(rk, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_CREATETOPICS, None, wait, |options, queue| {
            sys::rd_kafka_CreateTopics(rk.0, topics.as_mut_ptr(), 1, options, queue);
        });
        sys::rd_kafka_NewTopic_destroy(topic);
        let answer = answer?;
        let mut count = 0;
        let results = sys::rd_kafka_CreateTopics_result_topics(sys::rd_kafka_event_CreateTopics_result(answer.0.as_ptr()), &raw mut count);
        topic_result(results, count)
    }
}

/// Deletes a topic.
pub(super) fn delete_topic(rk: Rk, name: &str, wait: Duration) -> Result<()> {
    let name = c_text(name)?;
    // SAFETY: as in `create_topic`.
    unsafe {
        let topic = sys::rd_kafka_DeleteTopic_new(name.as_ptr());
        let mut topics = [topic];
        let answer = ask(rk, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DELETETOPICS, None, wait, |options, queue| {
            sys::rd_kafka_DeleteTopics(rk.0, topics.as_mut_ptr(), 1, options, queue);
        });
        sys::rd_kafka_DeleteTopic_destroy(topic);
        let answer = answer?;
        let mut count = 0;
        let results = sys::rd_kafka_DeleteTopics_result_topics(sys::rd_kafka_event_DeleteTopics_result(answer.0.as_ptr()), &raw mut count);
        topic_result(results, count)
    }
}

/// The result of a call about one topic.
///
/// # Safety
/// `results` holds `count` results of an event that is alive.
unsafe fn topic_result(results: *mut *const sys::rd_kafka_topic_result_t, count: usize) -> Result<()> {
    if results.is_null() || count == 0 {
        return Err(Fault::new(ErrorCode::Fail, "an answer without a result"));
    }
    // SAFETY: there is at least one.
    unsafe {
        match sys::rd_kafka_topic_result_error(*results) {
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            code => Err(Fault::new(code.into(), text(sys::rd_kafka_topic_result_error_string(*results)))),
        }
    }
}

/// What a config belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose<'a> {
    Topic(&'a str),
    Broker(i32),
}

/// The settings of a topic or a broker.
pub(super) fn settings(rk: Rk, whose: Whose<'_>, wait: Duration) -> Result<Vec<(String, String)>> {
    let (kind, name) = match whose {
        Whose::Topic(name) => (sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC, c_text(name)?),
        Whose::Broker(id) => (sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_BROKER, c_text(&id.to_string())?),
    };
    // SAFETY: the resource is destroyed below; the entries are copied while the event lives.
    unsafe {
        let resource = sys::rd_kafka_ConfigResource_new(kind, name.as_ptr());
        let mut resources = [resource];
        let answer = ask(rk, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS, None, wait, |options, queue| {
            sys::rd_kafka_DescribeConfigs(rk.0, resources.as_mut_ptr(), 1, options, queue);
        });
        sys::rd_kafka_ConfigResource_destroy(resource);
        let answer = answer?;
        let mut count = 0;
        let found =
            sys::rd_kafka_DescribeConfigs_result_resources(sys::rd_kafka_event_DescribeConfigs_result(answer.0.as_ptr()), &raw mut count);
        if found.is_null() || count == 0 {
            return Err(Fault::new(ErrorCode::Fail, "an answer without a result"));
        }
        let code = sys::rd_kafka_ConfigResource_error(*found);
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(Fault::new(code.into(), text(sys::rd_kafka_ConfigResource_error_string(*found))));
        }
        let entries = sys::rd_kafka_ConfigResource_configs(*found, &raw mut count);
        let entries = (0..count).map(|at| *entries.add(at));
        Ok(entries.map(|entry| (text(sys::rd_kafka_ConfigEntry_name(entry)), text(sys::rd_kafka_ConfigEntry_value(entry)))).collect())
    }
}

/// Before the first message of a partition.
pub(super) const EARLIEST: i64 = -2;
/// Behind the last message of a partition.
pub(super) const LATEST: i64 = -1;

/// For each partition the offset of what its `offset` asks for: [`EARLIEST`], [`LATEST`], or a time in ms.
/// A time behind the last message has no offset: -1.
pub(super) fn list_offsets(rk: Rk, of: &TopicPartitionList, wait: Duration) -> Result<Vec<Part>> {
    if of.count() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the list outlives the call; the infos are copied while the event lives.
    unsafe {
        let answer = ask(rk, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS, None, wait, |options, queue| {
            sys::rd_kafka_ListOffsets(rk.0, of.ptr(), options, queue);
        })?;
        let mut count = 0;
        let infos = sys::rd_kafka_ListOffsets_result_infos(sys::rd_kafka_event_ListOffsets_result(answer.0.as_ptr()), &raw mut count);
        Ok((0..count).map(|at| part(&*sys::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(at)))).collect())
    }
}

macro_rules! group_call {
    ($rk:expr, $broker:expr, $group:expr, $of:expr, $wait:expr, $op:ident, $new:ident, $call:ident, $destroy:ident, $result:ident, $groups:ident) => {{
        let (rk, group, of): (Rk, &str, &TopicPartitionList) = ($rk, $group, $of);
        if of.count() == 0 {
            return Ok(Vec::new());
        }
        let group = c_text(group)?;
        // SAFETY: the request is destroyed below; the answer's partitions are copied while the event lives.
        unsafe {
            let request = sys::$new(group.as_ptr(), of.ptr());
            let mut requests = [request];
            let answer = ask(rk, sys::rd_kafka_admin_op_t::$op, Some($broker), $wait, |options, queue| {
                sys::$call(rk.0, requests.as_mut_ptr(), 1, options, queue);
            });
            sys::$destroy(request);
            let answer = answer?;
            let mut count = 0;
            let groups = sys::$groups(sys::$result(answer.0.as_ptr()), &raw mut count);
            group_result(groups, count)
        }
    }};
}

/// The partitions of the one group of an answer.
///
/// # Safety
/// `groups` holds `count` results of an event that is alive.
unsafe fn group_result(groups: *mut *const sys::rd_kafka_group_result_t, count: usize) -> Result<Vec<Part>> {
    if groups.is_null() || count == 0 {
        return Err(Fault::new(ErrorCode::Fail, "an answer without a result"));
    }
    // SAFETY: there is at least one.
    unsafe {
        let error = sys::rd_kafka_group_result_error(*groups);
        if !error.is_null() {
            return Err(Fault::new(sys::rd_kafka_error_code(error).into(), text(sys::rd_kafka_error_string(error))));
        }
        Ok(parts(sys::rd_kafka_group_result_partitions(*groups)))
    }
}

/// The committed offsets of a group, with what was written beside them. Needs no membership.
pub(super) fn committed(rk: Rk, broker: i32, group: &str, of: &TopicPartitionList, wait: Duration) -> Result<Vec<Part>> {
    group_call!(
        rk,
        broker,
        group,
        of,
        wait,
        RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS,
        rd_kafka_ListConsumerGroupOffsets_new,
        rd_kafka_ListConsumerGroupOffsets,
        rd_kafka_ListConsumerGroupOffsets_destroy,
        rd_kafka_event_ListConsumerGroupOffsets_result,
        rd_kafka_ListConsumerGroupOffsets_result_groups
    )
}

/// Commits for a group that has no members.
pub(super) fn commit_for(rk: Rk, broker: i32, group: &str, of: &TopicPartitionList, wait: Duration) -> Result<Vec<Part>> {
    group_call!(
        rk,
        broker,
        group,
        of,
        wait,
        RD_KAFKA_ADMIN_OP_ALTERCONSUMERGROUPOFFSETS,
        rd_kafka_AlterConsumerGroupOffsets_new,
        rd_kafka_AlterConsumerGroupOffsets,
        rd_kafka_AlterConsumerGroupOffsets_destroy,
        rd_kafka_event_AlterConsumerGroupOffsets_result,
        rd_kafka_AlterConsumerGroupOffsets_result_groups
    )
}

/// Forgets what a group committed for these partitions.
pub(super) fn delete_committed(rk: Rk, broker: i32, group: &str, of: &TopicPartitionList, wait: Duration) -> Result<Vec<Part>> {
    group_call!(
        rk,
        broker,
        group,
        of,
        wait,
        RD_KAFKA_ADMIN_OP_DELETECONSUMERGROUPOFFSETS,
        rd_kafka_DeleteConsumerGroupOffsets_new,
        rd_kafka_DeleteConsumerGroupOffsets,
        rd_kafka_DeleteConsumerGroupOffsets_destroy,
        rd_kafka_event_DeleteConsumerGroupOffsets_result,
        rd_kafka_DeleteConsumerGroupOffsets_result_groups
    )
}

/// The partitions that live members of a group own.
pub(super) fn owned(rk: Rk, broker: i32, group: &str, wait: Duration) -> Result<Vec<Part>> {
    let group = c_text(group)?;
    // SAFETY: the assignments are copied while the event lives.
    unsafe {
        let mut groups = [group.as_ptr()];
        let answer = ask(rk, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS, Some(broker), wait, |options, queue| {
            sys::rd_kafka_DescribeConsumerGroups(rk.0, groups.as_mut_ptr(), 1, options, queue);
        })?;
        let mut count = 0;
        let found = sys::rd_kafka_DescribeConsumerGroups_result_groups(
            sys::rd_kafka_event_DescribeConsumerGroups_result(answer.0.as_ptr()),
            &raw mut count,
        );
        if found.is_null() || count == 0 {
            return Ok(Vec::new());
        }
        let group = *found;
        let error = sys::rd_kafka_ConsumerGroupDescription_error(group);
        if !error.is_null() && sys::rd_kafka_error_code(error) != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(Fault::new(sys::rd_kafka_error_code(error).into(), text(sys::rd_kafka_error_string(error))));
        }
        let mut all = Vec::new();
        for at in 0..sys::rd_kafka_ConsumerGroupDescription_member_count(group) {
            let member = sys::rd_kafka_ConsumerGroupDescription_member(group, at);
            let assignment = sys::rd_kafka_MemberDescription_assignment(member);
            if !assignment.is_null() {
                all.extend(parts(sys::rd_kafka_MemberAssignment_partitions(assignment)));
            }
        }
        Ok(all)
    }
}

/// The answer of a commit, as a whole and for each partition.
///
/// # Safety
/// `event` is a commit's event that is alive.
unsafe fn commit_result(event: &Answer) -> Result<()> {
    // SAFETY: as above; the list lives as long as the event.
    unsafe {
        let code = sys::rd_kafka_event_error(event.0.as_ptr());
        if code != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(Fault::new(code.into(), text(sys::rd_kafka_event_error_string(event.0.as_ptr()))));
        }
        let failed =
            parts(sys::rd_kafka_event_topic_partition_list(event.0.as_ptr())).into_iter().find(|part| part.code != ErrorCode::NoError);
        failed.map_or(Ok(()), |part| Err(Fault::new(part.code, format!("partition {} of '{}'", part.partition, part.topic))))
    }
}

/// Commits as a member, and waits for the answer at most that long.
pub(super) fn commit(rk: Rk, of: &TopicPartitionList, wait: Duration) -> Result<()> {
    // SAFETY: the queue is let go after its answer was taken; a later one is dropped with it.
    unsafe {
        let queue = sys::rd_kafka_queue_new(rk.0);
        let code = sys::rd_kafka_commit_queue(rk.0, of.ptr(), queue, None, ptr::null_mut());
        let event = if code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            Ok(sys::rd_kafka_queue_poll(queue, millis(wait)))
        } else {
            Err(Fault::new(code.into(), "the commit was not taken"))
        };
        sys::rd_kafka_queue_destroy(queue);
        match NonNull::new(event?).map(Answer) {
            Some(event) => commit_result(&event),
            None => Err(Fault::new(ErrorCode::OperationTimedOut, "no answer to a commit in time")),
        }
    }
}

/// Commits as a member without waiting: the answer comes to the consumer's commit callback.
pub(super) fn commit_soon(rk: Rk, of: &TopicPartitionList) -> Result<()> {
    // SAFETY: this handle of the consumer's queue is let go; the answer is put into the queue itself. (A plain asynchronous
    // commit would be answered only to a callback of librdkafka's config, which its Rust wrapper does not set.)
    unsafe {
        let queue = sys::rd_kafka_queue_get_consumer(rk.0);
        if queue.is_null() {
            return Err(Fault::new(ErrorCode::UnknownGroup, "the member has no queue"));
        }
        let code = sys::rd_kafka_commit_queue(rk.0, of.ptr(), queue, None, ptr::null_mut());
        sys::rd_kafka_queue_destroy(queue);
        match code {
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            code => Err(Fault::new(code.into(), "the commit was not taken")),
        }
    }
}

/// Whether the broker may have a message whose delivery failed.
pub(super) fn may_be_stored(message: &rdkafka::message::BorrowedMessage<'_>) -> bool {
    // SAFETY: the message is alive.
    let status = unsafe { sys::rd_kafka_message_status(message.ptr()) };
    status != sys::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}
