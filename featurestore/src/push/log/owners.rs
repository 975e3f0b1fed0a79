//! Whose a producer's name is: where callers are known by name, the name of a producer of a source is the caller's who uses it
//! first. Else whoever may push could send a great sequence under another's name, and what that one sends then would be
//! passed over as sent before.
//!
//! A name that has said something before callers were asked who they are is nobody's: whoever came first would have what
//! another sent. A person hands it over.

use super::state::State;
use crate::{Error, Result};

impl State {
    /// Whether a caller may push under a producer's name: it is its own, or nobody's and has said nothing yet.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Forbidden`] names the caller whose it is, or says that it is to be handed over.
    pub(super) fn check_owner(&self, of: &(String, String), caller: &str) -> Result<()> {
        let (source, producer) = (&of.0, &of.1);
        let hand_over = format!("springhouse producers {source} --hand-over {producer} --to {caller} -m WHY");
        let coming = || self.in_use.get(of)?.caller.as_ref();
        let (why, remedy) = match self.owners.get(of).or_else(coming) {
            Some(owner) if owner == caller => return Ok(()),
            Some(owner) => (
                Error::forbidden("the producer's name is another caller's").with("belongs to", owner),
                format!("push under a name of your own; or have it handed over: {hand_over}"),
            ),
            None if self.has_said(of) => (
                Error::forbidden(
                    "the producer pushed before callers were asked who they are: its name is nobody's yet",
                ),
                format!("have it handed over: {hand_over}"),
            ),
            None => return Ok(()),
        };
        Err(why.with("source", source).with("producer", producer).with("caller", caller).remedy(remedy))
    }
}
