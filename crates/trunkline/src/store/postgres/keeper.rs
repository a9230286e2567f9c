//! What an open store does by itself: it listens for changes of the catalogue, and holds its clock to the server's.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Shared;

/// How soon a lost connection is made again; a look at the version once a second goes on meanwhile.
const AGAIN: Duration = Duration::from_secs(1);
/// How often the clocks are compared.
const COMPARE: Duration = Duration::from_secs(5);

/// The channel on which a schema tells of changes.
pub(super) fn channel(schema: &str) -> String {
    format!("{schema}_catalog")
}

/// Listens until the store is closed.
pub(super) async fn listen(shared: Arc<Shared>, end: CancellationToken) {
    let channel = channel(&shared.link.target().schema);
    while !end.is_cancelled() {
        if let Err(error) = shared.link.listen(&channel, &end, || shared.changed.notify_one()).await {
            tracing::debug!(%error, "changes of the catalogue are not told for a moment");
        }
        pause(&end, AGAIN).await;
    }
}

/// Compares clocks until the store is closed.
pub(super) async fn compare(shared: Arc<Shared>, end: CancellationToken) {
    while !end.is_cancelled() {
        pause(&end, COMPARE).await;
        let compared = async { shared.clock.follow(&shared.db().await?).await };
        if let Err(error) = compared.await {
            tracing::debug!(%error, "the server's clock cannot be read");
        }
    }
}

async fn pause(end: &CancellationToken, pause: Duration) {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = end.cancelled() => {}
    }
}
