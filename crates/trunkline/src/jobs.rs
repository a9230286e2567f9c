//! Jobs: long work that goes on behind a call, and after a crash in another process.

use crate::access::Call;
use crate::error::{Code, Error, Result};
use crate::message::now_ms;
use crate::store::Job;
use crate::trunkline::Trunkline;

impl Trunkline {
    /// The jobs of a product, newest first. They are kept for 30 days after they last moved.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `STORE_FAILED`.
    pub async fn jobs(&self, product: &str) -> Result<Vec<Job>> {
        self.0.access.allow(Call::JobRead)?;
        self.0.store.jobs(product).await
    }

    /// One job.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`, `ACCESS_DENIED`, `STORE_FAILED`.
    pub async fn job(&self, id: &str) -> Result<Job> {
        self.0.access.allow(Call::JobRead)?;
        self.find_job(id).await
    }

    /// Ends a job before it is done; what it did stays done. One that ended already stays as it is.
    ///
    /// # Errors
    /// `JOB_NOT_FOUND`, `ACCESS_DENIED`, `STORE_FAILED`.
    pub async fn cancel_job(&self, id: &str) -> Result<Job> {
        let cancelled = async {
            let mut job = self.find_job(id).await?;
            if job.state == "running" {
                job.state = "cancelled".into();
                job.updated_at = now_ms();
                self.0.store.job_put(&job).await?;
            }
            Ok(job)
        };
        self.0.access.audited(Call::JobCancel, id, cancelled).await
    }

    async fn find_job(&self, id: &str) -> Result<Job> {
        self.0.store.job_get(id).await?.ok_or_else(|| {
            let shown: String = id.chars().filter(|c| !c.is_control()).take(64).collect();
            Error::new(Code::JobNotFound, format!("job '{shown}' does not exist")).next("list them with `trunkline jobs list`")
        })
    }
}
