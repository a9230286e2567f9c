use crate::history::Batch;
#[derive(Debug, Clone, Default)]
pub struct Recorder;
impl Recorder {
    pub fn record(&self, batch: Batch) { drop(batch); }
    pub async fn flush(&self) -> crate::Result<()> { Ok(()) }
}
