//! The items of a stream that were read and whose results were not taken yet; they outlive a broken connection.

use std::collections::BTreeMap;

/// Holds at most `window` items, each from when it is read until its result is taken.
pub(crate) struct InFlight<Request, Answer> {
    window: usize,
    ordered: bool,
    entries: BTreeMap<u64, Entry<Request, Answer>>, // by sequence number, in the order of reading
    next_sequence: u64,
    /// Whether no more items will be read.
    pub(crate) is_complete: bool,
}

enum Entry<Request, Answer> {
    Unanswered(Request), // kept, so that it can be sent again
    Answered(Answer),
}

impl<Request, Answer> InFlight<Request, Answer> {
    pub(crate) fn new(window: usize, ordered: bool) -> Self {
        Self {
            window: window.max(1),
            ordered,
            entries: BTreeMap::new(),
            next_sequence: 0,
            is_complete: false,
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.entries.len() < self.window
    }

    /// Returns whether an item must be sent, or sent again.
    pub(crate) fn has_unanswered(&self) -> bool {
        self.next_unsent(0).is_some()
    }

    /// Returns whether every item was read and answered, and its result taken.
    pub(crate) fn is_done(&self) -> bool {
        self.is_complete && self.entries.is_empty()
    }

    /// Adds the item that `request` makes of its number.
    pub(crate) fn enter(&mut self, request: impl FnOnce(u64) -> Request) {
        let sequence = self.next_sequence;
        self.entries
            .insert(sequence, Entry::Unanswered(request(sequence)));
        self.next_sequence += 1;
    }

    /// Returns the first unanswered request numbered `from` or above.
    pub(crate) fn next_unsent(&self, from: u64) -> Option<(u64, &Request)> {
        self.entries
            .range(from..)
            .find_map(|(&sequence, entry)| match entry {
                Entry::Unanswered(request) => Some((sequence, request)),
                Entry::Answered(_) => None,
            })
    }

    /// Returns the unanswered request with a number.
    pub(crate) fn unanswered(&self, sequence: u64) -> Option<&Request> {
        match self.entries.get(&sequence)? {
            Entry::Unanswered(request) => Some(request),
            Entry::Answered(_) => None,
        }
    }

    /// Records the answer to an item, unless it has one.
    pub(crate) fn answer(&mut self, sequence: u64, answer: impl FnOnce(Request) -> Answer) {
        match self.entries.remove(&sequence) {
            Some(Entry::Unanswered(request)) => {
                self.entries
                    .insert(sequence, Entry::Answered(answer(request)));
            }
            Some(answered) => {
                self.entries.insert(sequence, answered);
            }
            None => {}
        }
    }

    /// Removes and returns the next answer, if one is ready.
    pub(crate) fn take(&mut self) -> Option<Answer> {
        let is_ready = |entry: &Entry<_, _>| matches!(entry, Entry::Answered(_));
        let sequence = if self.ordered {
            self.entries
                .first_key_value()
                .filter(|(_, entry)| is_ready(entry))
                .map(|(&sequence, _)| sequence)
        } else {
            self.entries
                .iter()
                .find(|(_, entry)| is_ready(entry))
                .map(|(&sequence, _)| sequence)
        }?;
        match self.entries.remove(&sequence) {
            Some(Entry::Answered(answer)) => Some(answer),
            _ => None,
        }
    }
}
