//! The one error type of this crate, and how a status is read.

use std::collections::HashMap;
use std::error::Error as _;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tonic::Code;
use tonic_types::{FieldViolation, RpcStatusExt as _, Status};

/// A call or an item of a stream failed.
#[derive(Debug, Clone)]
pub struct Error(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    code: Code,
    message: String,
    reason: String,
    domain: String,
    metadata: HashMap<String, String>,
    violations: Vec<FieldViolation>,
    retry_delay: Option<Duration>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// The gRPC status code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// What happened and what to do, for people.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Stable name of the cause, such as `QUEUE_FULL`, for programs. Empty if the server sent none.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// `alignserve.v1` if alignserve itself refused the call; empty for gRPC's own errors.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.0.domain
    }

    /// More about the cause, such as the `error_id`.
    #[must_use]
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.0.metadata
    }

    /// Identifies the error in the server's log, for [`Code::Internal`].
    #[must_use]
    pub fn error_id(&self) -> Option<&str> {
        self.metadata().get("error_id").map(String::as_str)
    }

    /// The fields at fault, for [`Code::InvalidArgument`].
    #[must_use]
    pub fn violations(&self) -> &[FieldViolation] {
        &self.0.violations
    }

    /// How long the server asks to wait before a retry.
    #[must_use]
    pub fn retry_delay(&self) -> Option<Duration> {
        self.0.retry_delay
    }

    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            message: message.into(),
            reason: String::new(),
            domain: String::new(),
            metadata: HashMap::new(),
            violations: Vec::new(),
            retry_delay: None,
            source: None,
        }))
    }

    pub(crate) fn deadline_exceeded() -> Self {
        Self::new(
            Code::DeadlineExceeded,
            "the deadline has passed; allow more time",
        )
    }

    /// Reads an item's error.
    pub(crate) fn of_item(status: &Status) -> Self {
        let code = Code::from(status.code);
        let details = status.get_error_details();
        let mut error = Self::new(code, or_description(&status.message, code));
        if let Some(info) = details.error_info() {
            error.0.reason.clone_from(&info.reason);
            error.0.domain.clone_from(&info.domain);
            error.0.metadata.clone_from(&info.metadata);
        }
        if let Some(bad_request) = details.bad_request() {
            error.0.violations.clone_from(&bad_request.field_violations);
        }
        error.0.retry_delay = details.retry_info().and_then(|info| info.retry_delay);
        error
    }

    /// Reads the status of a call that this side did not cancel.
    pub(crate) fn of_call(status: tonic::Status) -> Self {
        let mut error = match Status::decode(status.details()) {
            // A proxy may have ended the call with a status of its own.
            Ok(packed) if Code::from(packed.code) == status.code() => Self::of_item(&packed),
            _ => Self::new(
                status.code(),
                or_description(status.message(), status.code()),
            ),
        };
        if error.reason().is_empty() && is_broken_connection(&status) {
            error.0.code = Code::Unavailable;
        }
        if let Some(cause) = root_cause(&status) {
            error.0.message = format!("{}: {cause}", error.0.message);
        }
        error.0.source = Some(Arc::new(status));
        error
    }

    /// Reads the status of a stream that this side did not cancel.
    pub(crate) fn of_stream(status: tonic::Status) -> Self {
        let mut error = Self::of_call(status);
        // The server gives a reason with each INTERNAL. Without one, a proxy has reset the stream of a dead server.
        if error.code() == Code::Internal && error.reason().is_empty() {
            error.0.code = Code::Unavailable;
        }
        error
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} [{:?}", self.message(), self.code())?;
        for part in [self.reason(), self.error_id().unwrap_or_default()] {
            if !part.is_empty() {
                write!(formatter, " {part}")?;
            }
        }
        formatter.write_str("]")
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// Returns whether a status without a reason says that the connection broke.
///
/// tonic has several codes for this: CANCELLED for a call that meets a connection that the server is closing (GOAWAY),
/// UNKNOWN and INTERNAL for others. A status that the server sent has no source.
fn is_broken_connection(status: &tonic::Status) -> bool {
    match status.code() {
        Code::Cancelled => true,
        Code::Unknown | Code::Internal => status.source().is_some(),
        _ => false,
    }
}

/// Returns what broke a connection, such as a refused certificate, which tonic's message does not say.
fn root_cause(status: &tonic::Status) -> Option<String> {
    let mut cause = status.source()?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Some(cause.to_string()).filter(|cause| !status.message().contains(cause))
}

fn or_description(message: &str, code: Code) -> &str {
    if message.is_empty() {
        code.description()
    } else {
        message
    }
}
