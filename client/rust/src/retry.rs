//! When a failed call is repeated, and after how long.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::Error;

const JITTER: f64 = 0.25; // largest random addition, as a share of the pause, so that clients do not repeat in step

/// How a client repeats calls. tonic repeats none itself. All calls are free of side effects, so a repeat is safe.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Attempts of a unary call that fails with [`Code::Unavailable`], including the first; 1 turns all repeats off.
    pub max_attempts: u32,
    /// Consecutive attempts of a stream without any answer.
    pub max_stream_attempts: u32,
    /// Pause before the first repeat.
    pub initial_backoff: Duration,
    /// Longest pause, unless the server asks for a longer one.
    pub max_backoff: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            max_stream_attempts: 10,
            initial_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
        }
    }
}

impl RetryPolicy {
    /// Returns the policy that repeats nothing.
    #[must_use]
    pub fn none() -> Self {
        Self {
            max_attempts: 1,
            max_stream_attempts: 1,
            ..Self::default()
        }
    }

    /// Makes attempts until one succeeds, must not be repeated, or its repeat would miss the deadline.
    ///
    /// A full server's delay is obeyed as often as the deadline allows; UNAVAILABLE is repeated `max_attempts` times.
    pub(crate) async fn run<T, F>(
        &self,
        deadline: Option<Instant>,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let (mut attempts, mut breaks) = (0, 0);
        loop {
            let error = match attempt().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            attempts += 1;
            if error.code() == Code::Unavailable && error.reason() != "SHUTTING_DOWN" {
                breaks += 1;
            }
            if self.max_attempts <= 1 || breaks >= self.max_attempts || !is_worth_repeating(&error)
            {
                return Err(error);
            }
            let pause = self.pause(&error, attempts);
            if misses(deadline, pause) {
                return Err(error);
            }
            sleep(pause).await;
        }
    }

    /// Returns the pause before a broken stream is opened again, or the error that ends it.
    ///
    /// `attempts` are those since the last answer.
    pub(crate) fn reconnect_pause(
        &self,
        error: Error,
        attempts: u32,
        deadline: Option<Instant>,
    ) -> Result<Duration, Error> {
        if error.code() != Code::Unavailable || attempts >= self.max_stream_attempts {
            return Err(error);
        }
        let pause = self.pause(&error, attempts);
        if misses(deadline, pause) {
            Err(Error::deadline_exceeded())
        } else {
            Ok(pause)
        }
    }

    fn pause(&self, error: &Error, attempts: u32) -> Duration {
        let backoff = self
            .initial_backoff
            .saturating_mul(1 << (attempts - 1).min(30))
            .min(self.max_backoff);
        let asked = error.retry_delay().unwrap_or_default();
        backoff.max(asked).mul_f64(1.0 + JITTER * fastrand::f64())
    }
}

fn misses(deadline: Option<Instant>, pause: Duration) -> bool {
    deadline.is_some_and(|deadline| Instant::now() + pause >= deadline)
}

fn is_worth_repeating(error: &Error) -> bool {
    match error.code() {
        Code::Unavailable => true,
        // Waiting brings the deadline closer. Without a delay it is the limit of a proxy, or of a message's size.
        Code::ResourceExhausted => {
            error.retry_delay().is_some() && error.reason() != "WOULD_MISS_DEADLINE"
        }
        _ => false,
    }
}
