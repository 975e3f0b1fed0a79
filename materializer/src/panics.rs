//! Panics as errors: what one view's query, or one job, does wrong is that one's, and the others go on.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use springhouse_featurestore::{Error, Result};

/// What a future gives; if it panics an error that says what was said. Nothing is left half done that another sees: what is shared
/// is changed in whole steps.
///
/// # Errors
/// The future's own; [`springhouse_featurestore::ErrorKind::Internal`] for a panic.
pub(crate) fn caught<T>(what: &str, work: impl Future<Output = Result<T>>) -> impl Future<Output = Result<T>> {
    // On the heap: what is caught is large, and awaited in many places.
    let work = AssertUnwindSafe(Box::pin(work)).catch_unwind();
    async move {
        work.await.unwrap_or_else(|panic| {
            Err(Error::internal(format!("{what} panicked"))
                .with("it said", said(panic.as_ref()))
                .remedy("please report it; it is tried again, and the others go on"))
        })
    }
}

/// What a panic said.
pub(crate) fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "nothing that can be shown".to_owned())
}

#[cfg(test)]
mod tests {
    use springhouse_featurestore::ErrorKind;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_with_what_it_said_and_an_error_stays_itself() {
        let row = 7;
        let error = caught::<()>("a view's query", async { panic!("row {row}") }).await.expect_err("it panics");
        assert_eq!(error.kind(), ErrorKind::Internal);
        let text = error.to_string();
        assert!(text.contains("a view's query panicked") && text.contains("row 7"), "{text}");
        let own = caught::<()>("a job", async { Err(Error::busy("later")) }).await.expect_err("its own");
        assert_eq!(own.kind(), ErrorKind::Busy);
        assert_eq!(caught("a job", async { Ok(1) }).await.expect("it ends"), 1);
    }
}
