//! Our errors as gRPC statuses, and back: the kind becomes the code, the text stays.

use springhouse_featurestore::{Error, ErrorKind};
use tonic::{Code, Status};

/// Which code says what the caller can do.
const CODES: [(ErrorKind, Code); 12] = [
    (ErrorKind::Invalid, Code::InvalidArgument),
    (ErrorKind::NotFound, Code::NotFound),
    (ErrorKind::Conflict, Code::Aborted),
    (ErrorKind::Damaged, Code::DataLoss),
    (ErrorKind::Busy, Code::ResourceExhausted),
    (ErrorKind::Refused, Code::FailedPrecondition),
    // After the one that comes back of this code.
    (ErrorKind::Newer, Code::FailedPrecondition),
    (ErrorKind::Expired, Code::DeadlineExceeded),
    (ErrorKind::Unauthenticated, Code::Unauthenticated),
    (ErrorKind::Forbidden, Code::PermissionDenied),
    (ErrorKind::Unavailable, Code::Unavailable),
    (ErrorKind::Internal, Code::Internal),
];

/// The most bytes of a status's text: it is sent with headers, whose bytes nobody counts.
const MOST_TEXT_BYTES: usize = 4 << 10;

/// The status for an error.
#[expect(clippy::needless_pass_by_value, reason = "used as map_err's function")]
pub(crate) fn to_status(error: Error) -> Status {
    let code = CODES.iter().find(|(kind, _)| *kind == error.kind()).map_or(Code::Unknown, |(_, code)| *code);
    Status::new(code, error.brief(MOST_TEXT_BYTES))
}

/// Whether a status was made on this side for a connection that failed; those of a server come without a cause.
pub(crate) fn is_of_connection(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// The error for a status.
pub(crate) fn from_status(status: &Status) -> Error {
    let kind = CODES.iter().find(|(_, code)| *code == status.code()).map_or(ErrorKind::Unavailable, |(kind, _)| *kind);
    Error::new(kind, status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_no_more_than_headers_have_room_for() {
        let long = "x".repeat(15 << 20);
        let status = to_status(Error::invalid(format!("no such tensor: {long}")).remedy(long));
        assert!(status.message().starts_with("no such tensor: xxx") && status.message().len() < 5 << 10);
        assert_eq!(from_status(&status).kind(), ErrorKind::Invalid);
    }
}
