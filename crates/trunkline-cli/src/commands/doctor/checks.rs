//! The checks, in the order in which one builds on the other: store, file, brokers, groups.

use std::time::Instant;

use trunkline::catalog::{BrokerView, EnvView};
use trunkline::file::Action;
use trunkline::message::{millis, now_ms};
use trunkline::schedules::ScheduleQuery;
use trunkline::store::Scope;
use trunkline::{Env, Error, Result};

use super::{Check, Level};
use crate::context::Ctx;
use crate::output;

/// What waits longer than this past its time has nobody who takes it.
const OVERDUE_MS: u64 = 10_000;

/// All of them.
pub(super) async fn all(ctx: &Ctx, only: Option<&str>) -> Vec<Check> {
    let mut checks = Vec::new();
    if !store(ctx, &mut checks).await {
        return checks;
    }
    file(ctx, &mut checks).await;
    let since = Instant::now();
    let brokers = async {
        let product = ctx.product().await?;
        let brokers = ctx.catalog().await?.list_brokers(&product)?;
        Ok::<_, Error>((product, brokers))
    };
    let (product, brokers) = match brokers.await {
        Ok(found) => found,
        Err(error) => return with(checks, failed("catalogue", "read", since, &error)),
    };
    if let Some(tag) = only.filter(|tag| !brokers.iter().any(|broker| broker.tag == **tag)) {
        let error =
            Error::new(trunkline::Code::BrokerNotFound, format!("broker '{}' does not exist in product '{product}'", output::plain(tag)))
                .next("list them with `trunkline brokers list`");
        return with(checks, failed("catalogue", "read", since, &error));
    }
    if brokers.is_empty() {
        checks.push(Check {
            fix: Some("create one with `trunkline brokers create TAG --on ENV=EMBEDDED`".into()),
            ..warn("catalogue", "brokers", since, format!("product '{product}' has no broker"))
        });
    }
    for broker in brokers.iter().filter(|broker| only.is_none_or(|tag| tag == broker.tag)) {
        for env in &broker.envs {
            if ctx.env_flag().is_none_or(|slug| slug == env.slug)
                && let Err(error) = one(ctx, &product, broker, env, &mut checks).await
            {
                checks.push(failed(&format!("broker {}/{}", broker.tag, env.slug), "open", since, &error));
            }
        }
    }
    checks
}

fn with(mut checks: Vec<Check>, check: Check) -> Vec<Check> {
    checks.push(check);
    checks
}

/// Whether the store can be used at all.
async fn store(ctx: &Ctx, checks: &mut Vec<Check>) -> bool {
    let since = Instant::now();
    let trunkline = match ctx.trunkline().await {
        Ok(trunkline) => trunkline,
        Err(error) => {
            checks.push(failed("store", "open", since, &error));
            return false;
        }
    };
    let location = trunkline.store().location();
    checks.push(Check { message: Some(location), ..ok("store", "open", since) });
    let since = Instant::now();
    match trunkline.store().probe().await {
        Ok(()) => checks.push(Check { message: Some("a small durable write goes through".into()), ..ok("store", "write", since) }),
        Err(error) => checks.push(failed("store", "write", since, &error)),
    }
    true
}

/// Whether the file says what the catalogue has.
async fn file(ctx: &Ctx, checks: &mut Vec<Check>) {
    let since = Instant::now();
    let found = match ctx.file() {
        Ok(found) => found,
        Err(error) => return checks.push(failed("file", "read", since, &error)),
    };
    let Some((path, file)) = found else { return };
    let planned: Result<_> = async { file.plan(ctx.catalog().await?, ctx.product_flag(), false).await }.await;
    checks.push(match planned {
        Ok(changes) => {
            let differ = changes.iter().filter(|change| change.action != Action::Unchanged).count();
            if differ == 0 {
                Check { message: Some(format!("{} is applied", path.display())), ..ok("file", "plan", since) }
            } else {
                let fix = Some("see the difference with `trunkline apply --dry-run`, then `trunkline apply`".into());
                Check {
                    fix,
                    ..warn(
                        "file",
                        "plan",
                        since,
                        format!("{} differs from the catalogue in {}", path.display(), output::plural(differ, "place")),
                    )
                }
            }
        }
        Err(error) => failed("file", "plan", since, &error),
    });
}

/// One env of a broker: the connection in stages, then the groups of its topics.
async fn one(ctx: &Ctx, product: &str, broker: &BrokerView, env: &EnvView, checks: &mut Vec<Check>) -> Result<()> {
    let trunkline = ctx.trunkline().await?;
    let (area, handle) = (format!("broker {}/{}", broker.tag, env.slug), trunkline.env(product, &env.slug));
    let since = Instant::now();
    let test = match handle.test_connection(&broker.tag).await {
        Ok(test) => test,
        Err(error) => {
            checks.push(failed(&area, "open", since, &error));
            return Ok(());
        }
    };
    for stage in test.stages {
        checks.push(Check {
            area: area.clone(),
            stage: stage.stage.to_owned(),
            level: if stage.ok { Level::Ok } else { Level::Fail },
            ms: stage.ms,
            code: stage.code,
            message: stage.message,
            fix: stage.fix,
        });
    }
    if !test.success {
        return Ok(());
    }
    if trunkline.store().scope() == Scope::Host && env.kind.as_str() != "EMBEDDED" {
        checks.push(Check {
            fix: Some("a shared store reaches further; `store: { singleHost: true }` says that this host is all there is".into()),
            ..warn(&area, "scope", since, "idempotency, dedupe and schedules hold on this host only".into())
        });
    }
    schedules(&handle, broker, env, &area, checks).await;
    for topic in &broker.topics {
        groups(&handle, topic.tag.as_str(), checks).await;
    }
    Ok(())
}

/// Schedules of a broker that fail, or that only this host fires while the broker is of many.
async fn schedules(handle: &Env, broker: &BrokerView, env: &EnvView, area: &str, checks: &mut Vec<Check>) {
    let since = Instant::now();
    let found = match handle.schedules(&ScheduleQuery { limit: 1_000, ..ScheduleQuery::default() }).await {
        Ok(found) => found,
        Err(error) => return checks.push(failed(area, "schedules", since, &error)),
    };
    let own: Vec<_> = found.schedules.iter().filter(|schedule| schedule.event.broker() == broker.tag).collect();
    for schedule in own.iter().filter(|schedule| schedule.failures > 0) {
        let error = schedule.error.as_deref().unwrap_or_default();
        let message =
            format!("schedule {} of {} cannot be fired ({} times): {error}", schedule.schedule_id, schedule.event, schedule.failures);
        let fix = Some(format!("trunkline schedules show {}", schedule.schedule_id));
        checks.push(Check { fix, ..warn(area, "schedules", since, message) });
    }
    if found.scope == Scope::Host && env.kind.as_str() != "EMBEDDED" && !own.is_empty() {
        let message = format!("{} lie on this host only: no other host fires them", output::plural(own.len(), "schedule"));
        let fix = Some("keep `trunkline run` up on this host, or use a shared store".into());
        checks.push(Check { fix, ..warn(area, "schedules", since, message) });
    }
}

async fn groups(env: &Env, event: &str, checks: &mut Vec<Check>) {
    let since = Instant::now();
    let area = format!("topic {event}/{}", env.slug());
    let groups = match env.groups(event).await {
        Ok(groups) => groups,
        Err(error) => return checks.push(failed(&area, "groups", since, &error)),
    };
    let before = checks.len();
    for group in groups {
        let name = output::plain(&group.name);
        let overdue = group.next_due.is_some_and(|due| due + OVERDUE_MS < now_ms());
        if group.members.is_empty() && group.waiting > 0 && overdue {
            let message = format!("{} messages of group {name} are due, and no consumer of it lives", output::count(group.waiting));
            checks.push(Check { fix: Some(format!("trunkline consume {event} --group {name}")), ..warn(&area, "waiting", since, message) });
        }
        if group.dead > 0 {
            let message = format!("group {name} has {} dead letters", output::count(group.dead));
            checks.push(Check { fix: Some(format!("trunkline dead groups --group {name}")), ..warn(&area, "dead", since, message) });
        }
        if group.paused {
            let message = format!("group {name} is paused");
            checks.push(Check { fix: Some(format!("trunkline groups resume {event} {name}")), ..warn(&area, "paused", since, message) });
        }
    }
    match env.delayed_publishes(event).await {
        Ok(delayed) => {
            if delayed.failing > 0 {
                let message = format!("{} delayed publishes failed and are tried again", output::count(delayed.failing));
                let fix = Some("the log of the process that publishes says why; `trunkline run -vv` tries them here".into());
                checks.push(Check { fix, ..warn(&area, "delayed", since, message) });
            }
            if delayed.dead > 0 {
                let message = format!("{} delayed publishes were given up", output::count(delayed.dead));
                let fix = Some("trunkline dead list --error publish_failed; `trunkline dead reprocess` publishes them".into());
                checks.push(Check { fix, ..warn(&area, "delayed", since, message) });
            }
        }
        Err(error) => checks.push(failed(&area, "delayed", since, &error)),
    }
    if checks.len() == before {
        checks.push(ok(&area, "groups", since));
    }
}

fn ok(area: &str, stage: &str, since: Instant) -> Check {
    let ms = millis(since.elapsed());
    Check { area: area.into(), stage: stage.into(), level: Level::Ok, ms, code: None, message: None, fix: None }
}

fn warn(area: &str, stage: &str, since: Instant, message: String) -> Check {
    Check { level: Level::Warn, message: Some(message), ..ok(area, stage, since) }
}

fn failed(area: &str, stage: &str, since: Instant, error: &Error) -> Check {
    let fix = error.detail_str("next").map(str::to_owned);
    Check { level: Level::Fail, code: Some(error.code()), message: Some(error.message().to_owned()), fix, ..ok(area, stage, since) }
}
