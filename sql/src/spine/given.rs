//! What people give as a spine: the name of one that the project defines, a file, or a query.

use springhouse_featurestore::catalog::CatalogState;
use springhouse_featurestore::definition;
use springhouse_featurestore::time::Span;
use springhouse_featurestore::{Error, Result};

use super::SpineSource;

impl SpineSource {
    /// A spine that the project defines. Its time is named by its definition, and by `time` at most once more.
    ///
    /// # Errors
    /// [`springhouse_featurestore::ErrorKind::NotFound`] with the names that there are;
    /// [`springhouse_featurestore::ErrorKind::Invalid`] for another time than the definition's.
    pub fn defined(catalog: &CatalogState, name: &str, time: Option<&str>) -> Result<Self> {
        let spine = catalog.current_spine(name)?;
        if let Some(time) = time.filter(|time| *time != spine.time) {
            return Err(Error::invalid("the spine's time is another column by its definition")
                .with("spine", &spine.name)
                .with("given", time)
                .with("defined", &spine.time)
                .remedy("leave the time out, or change the definition"));
        }
        Ok(Self { from: spine.query.clone(), time: spine.time.clone(), lag: Span::ZERO })
    }

    /// A spine as it is given on a command line. A single word, or one in double quotes, is the name of one that the project
    /// defines; anything else is a query or a file, of which a name without folder and ending is written `./name`.
    ///
    /// # Errors
    /// As [`Self::defined`].
    pub fn given(catalog: &CatalogState, text: &str, time: Option<&str>) -> Result<Self> {
        if let Some(name) = name_in(text) {
            let spine = Self::defined(catalog, &name, time);
            let remedy = "define it (CREATE SPINE name AS SELECT ...), give ./name for a file, or a SELECT";
            return spine
                .map_err(|error| if catalog.current_spine(&name).is_err() { error.remedy(remedy) } else { error });
        }
        let time = time.unwrap_or(definition::Spine::TIME).to_owned();
        Ok(Self { from: text.to_owned(), time, lag: Span::ZERO })
    }
}

/// The name that a text is, where it is one.
fn name_in(text: &str) -> Option<String> {
    let text = text.trim();
    if let Some(quoted) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        let name = quoted.replace("\"\"", "\"");
        return (!name.is_empty()).then_some(name);
    }
    let begins = |c: char| c.is_ascii_alphabetic() || c == '_';
    let is_word = text.starts_with(begins) && text.chars().all(|c| begins(c) || c.is_ascii_digit());
    is_word.then(|| text.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_a_name_and_files_and_queries_are_none() {
        assert_eq!(name_in(" Landings_2013 ").as_deref(), Some("landings_2013"));
        assert_eq!(name_in("\"Odd \"\"name\"\"\"").as_deref(), Some("Odd \"name\""));
        for other in
            ["./landings", "landings.csv", "s3://a/b", "SELECT 1", "(select 1)", "", "\"\"", "2013", "/landings"]
        {
            assert_eq!(name_in(other), None, "{other}");
        }
    }

    #[test]
    fn a_name_that_is_not_defined_says_how_a_file_is_written() {
        let error = SpineSource::given(&CatalogState::default(), "landings", None).expect_err("nothing is defined");
        assert!(error.to_string().contains("no such spine") && error.to_string().contains("./name"), "{error}");
        let file = SpineSource::given(&CatalogState::default(), "./landings", None).expect("a file");
        assert_eq!((file.from.as_str(), file.time.as_str()), ("./landings", "as_of"));
    }
}
