//! Interrupt moderation: whether to wait a moment for more work before an interrupt.
//!
//! An interrupt costs the guest several exits. With many requests in flight the driver goes on adding some
//! while we finish others, and one interrupt can tell of them all; with one request in flight it waits for us,
//! and to hold the interrupt back would only be slow. Which of the two it is shows by trying.

use std::time::{Duration, Instant};

/// A wait lasts this many times as long as the driver usually takes to add a request.
const WAIT: u32 = 2;
/// An interrupt is held back for this many times the longest wait.
const LONGEST: u32 = 4;
/// All waits of late found more.
const SURE: u32 = 256;
/// Waiting is worth it if two of three find more.
const WORTH: u32 = 170;
/// The weight of the newest wait is 1 in this.
const WEIGHT: u32 = 8;
/// Where waiting is not worth it, one in so many interrupts is tried again.
const TRY_EVERY: u32 = 64;

/// Decides when the interrupts of a worker's queues are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moderation {
    /// Longest that one wait lasts.
    limit: Duration,
    /// Time from one request to the next, of late.
    gap: Duration,
    /// When the last one was.
    last: Instant,
    /// How often waiting found more, of late: 0 to [`SURE`].
    luck: u32,
    /// Whether the last wait did.
    hit: bool,
    /// Interrupts sent without waiting since then.
    untried: u32,
    /// Since when the interrupt to come is held back.
    since: Option<Instant>,
}

impl Moderation {
    /// One that never waits for a request for longer than `limit`.
    pub(crate) fn new(limit: Duration) -> Moderation {
        let last = Instant::now();
        Moderation { limit, gap: limit, last, luck: 0, hit: false, untried: 0, since: None }
    }

    /// An interrupt is due: waits a moment for more work, by calling `found` again and again, if that has been
    /// paying off. True if there is more, false if the interrupt is to be sent now.
    pub(crate) fn hold(&mut self, found: impl FnMut() -> bool) -> bool {
        let now = Instant::now();
        let gap = now.saturating_duration_since(self.last).min(self.limit);
        self.gap = domain::average(self.gap, gap);
        self.last = now;
        if self.is_worth_it() {
            let since = *self.since.get_or_insert(now);
            if now.saturating_duration_since(since) < self.limit.saturating_mul(LONGEST) {
                let wait = self.gap.saturating_mul(WAIT).min(self.limit);
                self.note(domain::look(now, wait, wait, found));
                if self.hit {
                    return true;
                }
            }
        } else {
            self.untried = self.untried.saturating_add(1);
        }
        self.since = None;
        false
    }

    fn is_worth_it(&self) -> bool {
        self.luck >= WORTH || self.hit || self.untried >= TRY_EVERY
    }

    fn note(&mut self, hit: bool) {
        let now = if hit { SURE } else { 0 };
        self.luck = self.luck.saturating_mul(WEIGHT.saturating_sub(1)).saturating_add(now) / WEIGHT;
        self.hit = hit;
        self.untried = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(4);

    /// Interrupts sent for `requests` requests that come in bursts of `depth`, each burst after the interrupt for
    /// the last; and the waits in vain.
    fn play(depth: u32, requests: u32) -> (u32, u32) {
        let mut moderation = Moderation::new(Duration::from_secs(60));
        // As many waits as anybody has patience for, without the clock.
        let (mut interrupts, mut in_vain, mut left) = (0, 0, depth);
        for _ in 0..requests {
            left -= 1;
            if moderation.is_worth_it() {
                moderation.note(left > 0);
                if left > 0 {
                    continue;
                }
                in_vain += 1;
            } else {
                moderation.untried += 1;
            }
            interrupts += 1;
            if left == 0 {
                left = depth;
            }
        }
        (interrupts, in_vain)
    }

    #[test]
    fn one_request_at_a_time_is_told_at_once() {
        let (interrupts, in_vain) = play(1, 6400);
        assert_eq!(interrupts, 6400);
        assert!(in_vain <= 100, "{in_vain}");
    }

    #[test]
    fn many_requests_are_told_together() {
        let (interrupts, in_vain) = play(32, 6400);
        assert!(interrupts <= 300, "{interrupts}");
        assert!(in_vain <= 300, "{in_vain}");
    }

    #[test]
    fn nothing_is_held_back_for_long() {
        let mut moderation = Moderation::new(LIMIT);
        moderation.luck = SURE;
        let begin = Instant::now();
        while moderation.hold(|| true) {}
        assert!((LIMIT * LONGEST..LIMIT * LONGEST * 4).contains(&begin.elapsed()));
        // The next one has its own time.
        assert!(moderation.hold(|| true));
        let begin = Instant::now();
        assert!(!moderation.hold(|| false));
        assert!(begin.elapsed() < LIMIT * LONGEST);
    }
}
