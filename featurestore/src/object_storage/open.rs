//! Opening the store that a person names: a URL, or a local folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use super::{DurableFolder, create_folder};
use crate::{Error, Result};

/// A connection to a store that is not there by then is none.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// The whole of a request to a store: the longest moves some ten megabytes.
const REQUEST_WITHIN: Duration = Duration::from_secs(20);

/// A request that failed is tried again so often, and begun no later than so long after the first time.
const RETRIES: usize = 5;
const RETRY_WITHIN: Duration = Duration::from_secs(20);

/// The longest wait between two of them.
const RETRY_AT_LEAST_EVERY: Duration = Duration::from_secs(5);

/// Opens the store at a URL (`s3://bucket/prefix`, `file:///folder`) or in a local folder, which is created.
/// Options are those of `object_store`, such as `aws_endpoint` or `timeout`; the environment's (`AWS_*`) count too.
/// A store on the network that does not answer gives [`crate::ErrorKind::Unavailable`] within a minute.
///
/// # Errors
/// [`crate::ErrorKind::Invalid`] for a URL that no store serves.
pub fn open_store<'a>(
    location: &str,
    options: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Arc<dyn ObjectStore>> {
    let Some(url) = url_of(location) else { return open_folder(path_of(location)) };
    let wrong = |error: object_store::Error| {
        Error::invalid("the store's URL cannot be opened")
            .with("url", &url)
            .remedy("give a folder, or a URL such as s3://bucket/prefix")
            .source(error)
    };
    let environment: Vec<(String, String)> = std::env::vars().filter(|(name, _)| name.starts_with("AWS_")).collect();
    let environment = environment.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
    let options = environment.chain(options.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
    let (scheme, prefix) = ObjectStoreScheme::parse(&url).map_err(|error| wrong(error.into()))?;
    let (store, prefix) = match scheme {
        ObjectStoreScheme::AmazonS3 => (open_s3(&url, options).map_err(wrong)?, prefix),
        _ => object_store::parse_url_opts(&url, options).map_err(wrong)?,
    };
    Ok(Arc::new(PrefixStore::new(store, prefix)))
}

/// The folder in which a store lies; none of one at a URL that is not a folder's.
pub fn folder_of(location: &str) -> Option<PathBuf> {
    url_of(location).is_none().then(|| path_of(location).to_owned())
}

fn url_of(location: &str) -> Option<Url> {
    Url::parse(location).ok().filter(|url| url.scheme().len() > 1 && url.scheme() != "file")
}

fn path_of(location: &str) -> &Path {
    Path::new(location.strip_prefix("file://").unwrap_or(location))
}

/// A store that speaks S3; an endpoint that does not answer is an error within a minute.
fn open_s3(
    url: &Url,
    options: impl Iterator<Item = (String, String)>,
) -> Result<Box<dyn ObjectStore>, object_store::Error> {
    let client = ClientOptions::new().with_connect_timeout(CONNECT_WITHIN).with_timeout(REQUEST_WITHIN);
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(200), max_backoff: RETRY_AT_LEAST_EVERY, base: 2. };
    let retry = RetryConfig { backoff, max_retries: RETRIES, retry_timeout: RETRY_WITHIN };
    let builder = AmazonS3Builder::new().with_url(url.as_str()).with_client_options(client).with_retry(retry);
    let builder = options.fold(builder, |builder, (name, value)| match name.to_ascii_lowercase().parse() {
        Ok(key) => builder.with_config(key, value),
        // Of `AWS_*` in the environment, some are for other programs.
        Err(_) => builder,
    });
    Ok(Box::new(builder.build()?))
}

fn open_folder(folder: &Path) -> Result<Arc<dyn ObjectStore>> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::unavailable("the store's folder cannot be made or opened").with("folder", folder.display()).source(error)
    };
    create_folder(folder).map_err(|error| failed(error.into()))?;
    Ok(Arc::new(DurableFolder::new(folder).map_err(|error| failed(error.into()))?))
}
