//! Live producers and consumers, as the registry has them.

use std::time::Duration;

use crate::access::Call;
use crate::error::Result;
use crate::store::{Member, MemberRole};
use crate::trunkline::{Env, Trunkline};

/// Who has not reported for so long is gone.
pub(crate) const SILENT: Duration = Duration::from_secs(10);

impl Trunkline {
    /// Live producers and consumers of all processes.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `STORE_FAILED`.
    pub async fn members(&self, role: Option<MemberRole>) -> Result<Vec<Member>> {
        self.0.access.allow(Call::MemberRead)?;
        let members = self.0.store.members(None, SILENT).await?;
        Ok(members.into_iter().filter(|member| role.is_none_or(|role| role == member.role)).collect())
    }
}

impl Env {
    /// Live producers of this env, of one broker (its tag) or topic (its short tag) if given.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `STORE_FAILED`.
    pub async fn producers(&self, broker: Option<&str>, topic: Option<&str>) -> Result<Vec<Member>> {
        self.inner().access.allow(Call::MemberRead)?;
        self.members_of(MemberRole::Producer, broker, topic).await
    }

    /// Live consumers of this env, of one broker (its tag) or topic (its short tag) if given.
    ///
    /// # Errors
    /// `ACCESS_DENIED`, `STORE_FAILED`.
    pub async fn consumers(&self, broker: Option<&str>, topic: Option<&str>) -> Result<Vec<Member>> {
        self.inner().access.allow(Call::MemberRead)?;
        self.members_of(MemberRole::Consumer, broker, topic).await
    }

    pub(crate) async fn members_of(&self, role: MemberRole, broker: Option<&str>, topic: Option<&str>) -> Result<Vec<Member>> {
        let members = self.inner().store.members(None, SILENT).await?;
        let is_here = |member: &Member| {
            let address = &member.address;
            member.role == role
                && &*address.product == self.product_tag()
                && &*address.env == self.slug()
                && broker.is_none_or(|tag| tag == address.event.broker())
                && topic.is_none_or(|tag| tag == address.event.topic())
        };
        Ok(members.into_iter().filter(is_here).collect())
    }
}
