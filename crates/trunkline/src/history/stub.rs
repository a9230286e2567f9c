use super::*;
use crate::error::Result;
use std::path::Path;
#[derive(Debug, Clone, Default)]
pub struct Options;
#[derive(Debug, Clone)]
pub struct History;
impl History {
    pub fn open(_: &Path, _: Options) -> Result<History> { Ok(History) }
    pub fn recorder(&self) -> Result<recorder::Recorder> { Ok(recorder::Recorder) }
    pub async fn close(&self) -> Result<()> { Ok(()) }
    pub async fn get(&self, _: MessageId) -> Result<Option<record::Record>> { Ok(None) }
    pub async fn query(&self, _: &query::Query) -> Result<query::Page> { Err(crate::Error::store("stub")) }
}
