use crate::message::*; use bytes::Bytes; use crate::delivery::Position;
#[derive(Debug, Clone, Copy, PartialEq)] pub enum Status { Pending, Retrying }
#[derive(Debug, Clone)] pub struct Text(pub Bytes);
#[derive(Debug, Clone)] pub struct Record { pub process_id: MessageId, pub product: String, pub env: String, pub event: String, pub status: Status, pub key: Option<Text>, pub headers: Headers, pub payload: Option<Text>, pub replayed_by: Option<MessageId>, pub position: Option<Position> }
