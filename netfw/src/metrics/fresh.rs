//! One page for all who ask within a second: the agent is held while it is made, and others wait for that.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Mutex;

/// How old a page may be.
const FRESH: Duration = Duration::from_secs(1);

/// The last page, and when it was begun.
#[derive(Debug, Default)]
pub struct Pages(Mutex<Option<(Instant, Bytes)>>);

impl Pages {
    /// The last page or, where that is too old, what `make` makes. Who asks meanwhile waits for that one.
    pub async fn get<E>(&self, make: impl AsyncFnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        let mut last = self.0.lock().await;
        match &*last {
            Some((begun, page)) if begun.elapsed() < FRESH => Ok(page.clone()),
            _ => {
                let begun = Instant::now();
                let page = make().await?;
                *last = Some((begun, page.clone()));
                Ok(page)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_page_is_made_once_for_all() {
        let pages = Pages::default();
        let made = AtomicUsize::new(0);
        let get = || {
            pages.get(async || match made.fetch_add(1, Ordering::Relaxed) {
                // What failed is made again.
                0 => Err("no"),
                n => Ok(Bytes::from(n.to_string())),
            })
        };
        assert_eq!(get().await, Err("no"));
        let all = futures::future::join_all((0..10).map(|_| get())).await;
        assert!(
            all.iter().all(|page| *page == Ok(Bytes::from("1"))),
            "{all:?}"
        );
        let before = Instant::now().checked_sub(FRESH);
        if let Some((begun, _)) = &mut *pages.0.lock().await {
            *begun = before.expect("a clock that has run for a second");
        }
        assert_eq!(get().await, Ok(Bytes::from("2")));
    }
}
