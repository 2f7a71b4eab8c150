//! What several tests need.

use tokio::sync::{Mutex, MutexGuard};

static CHILDREN: Mutex<()> = Mutex::const_new(());

/// The right to have child processes. The reaper under test waits for every child of this process, also for those of other tests.
pub async fn children() -> MutexGuard<'static, ()> {
    CHILDREN.lock().await
}
