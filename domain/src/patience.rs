//! How long to look for more work before going to sleep.
//!
//! Being woken costs tens of microseconds, and the guest an exit besides; a look at shared memory costs next to
//! nothing. So who has just worked looks for as long as a wake-up would cost, or a few times that, and
//! only as long as that has been paying off: an idle guest costs no CPU time.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Looking lasts as long as this many system calls. A kick costs about half of that all in all: the guest's exit, Xen's
/// event, dom0's wake-up, ours, and what these leave behind in caches. The guest needs some time, too, to
/// come up with more.
const CALLS: u32 = 256;
/// Bounds of the result, for machines on which the measurement goes wrong.
const LIMITS: [Duration; 2] = [Duration::from_micros(20), Duration::from_millis(8)];
/// System calls measured; the quickest counts, since the others met something else that ran.
const SAMPLES: u32 = 16;
/// Somebody else who takes the CPU for this part of the longest look ends it.
const YIELD: u32 = 4;
/// The weight of the newest pause in the average is 1 in this.
const WEIGHT: u32 = 8;
/// A pause counts as no more than this many limits, so that the average recovers within a few wake-ups.
const LONGEST: u32 = 4;

/// When it is worth waiting awake for what comes next.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    limit: Duration,
    /// How long pauses usually last.
    usual: Duration,
    since: Instant,
    asleep: bool,
}

impl Patience {
    /// One that never looks longer than `limit`. It starts out impatient.
    pub fn new(limit: Duration) -> Patience {
        Patience { limit, usual: limit.saturating_mul(LONGEST), since: Instant::now(), asleep: true }
    }

    /// A pause begins: looks for its end by calling `found` again and again, if that has been paying off. True
    /// if it is over, false if it is time to sleep.
    pub fn look(&mut self, found: impl FnMut() -> bool) -> bool {
        self.since = Instant::now();
        self.asleep = self.usual >= self.limit;
        if self.asleep {
            return false;
        }
        let over = look(self.since, self.limit, part(self.limit, YIELD), found);
        if !over {
            // Perhaps the guest gets to do something only once we sleep: looking has to pay off anew.
            *self = Patience::new(self.limit);
        }
        over
    }

    /// The pause is over: there is work. If we slept, it would have come sooner without the kick that that took.
    pub fn resume(&mut self) {
        let kick = if self.asleep { part(self.limit, 2) } else { Duration::ZERO };
        self.note(self.since.elapsed().saturating_sub(kick));
    }

    fn note(&mut self, pause: Duration) {
        self.usual = average(self.usual, pause.min(self.limit.saturating_mul(LONGEST)));
    }
}

/// The moving average `of` durations, with one more `value`.
fn average(of: Duration, value: Duration) -> Duration {
    part(of.saturating_mul(WEIGHT.saturating_sub(1)).saturating_add(value), WEIGHT)
}

fn part(of: Duration, count: u32) -> Duration {
    of.checked_div(count).unwrap_or_default()
}

/// Calls `found` until it says true, for no longer than `limit` from `since` on. Ends as well when somebody else had
/// the CPU for more than `share` at once: then it is needed.
fn look(since: Instant, limit: Duration, share: Duration, mut found: impl FnMut() -> bool) -> bool {
    let mut before = since;
    loop {
        if found() {
            return true;
        }
        std::thread::yield_now();
        let now = Instant::now();
        if now.saturating_duration_since(since) >= limit || now.saturating_duration_since(before) > share {
            return false;
        }
        before = now;
    }
}

/// For how long it can be worth looking on this machine: as long as some system calls take, which is measured at the
/// first call. On a PV dom0 they are dear, and so are the events that a kick comes by.
pub fn longest_look() -> Duration {
    static LIMIT: OnceLock<Duration> = OnceLock::new();
    *LIMIT.get_or_init(|| {
        let [least, most] = LIMITS;
        let call = || {
            let begin = Instant::now();
            std::thread::yield_now();
            begin.elapsed()
        };
        let quickest = (0..SAMPLES).map(|_| call()).min().unwrap_or_default();
        let limit = quickest.saturating_mul(CALLS).clamp(least, most);
        log::debug!("a look for more work lasts up to {limit:?}");
        limit
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(100);

    fn is_patient(patience: &Patience) -> bool {
        patience.usual < patience.limit
    }

    #[test]
    fn looks_only_while_that_pays_off() {
        let mut patience = Patience::new(LIMIT);
        assert!(!patience.look(|| panic!("should sleep")));
        // A burst of work: after some wake-ups it stays awake.
        let wake_ups = (0..).take_while(|_| {
            patience.note(Duration::from_micros(10));
            !is_patient(&patience)
        });
        assert!(wake_ups.count() < 16);
        assert!(patience.look(|| true));
        // A few long pauses are the end of it.
        let mut pauses = 0;
        while is_patient(&patience) {
            patience.note(Duration::from_secs(10));
            pauses += 1;
        }
        assert!((1..=3).contains(&pauses), "{pauses}");
    }

    #[test]
    fn steady_work_that_comes_too_seldom_never_keeps_it_awake() {
        let mut patience = Patience::new(LIMIT);
        for _ in 0..1000 {
            patience.note(LIMIT + Duration::from_micros(1));
            assert!(!is_patient(&patience));
        }
    }

    #[test]
    fn a_look_ends_in_time() {
        let begin = Instant::now();
        let limit = Duration::from_millis(20);
        assert!(!look(begin, limit, limit, || false));
        assert!(begin.elapsed() >= limit);
        // Somebody else has the CPU.
        let mut calls = 0;
        assert!(!look(Instant::now(), Duration::from_secs(60), Duration::from_millis(5), || {
            calls += 1;
            std::thread::sleep(Duration::from_millis(6));
            false
        }));
        assert_eq!(calls, 1);
    }

    #[test]
    fn the_longest_look_is_measured_once() {
        let limit = longest_look();
        assert!((LIMITS[0]..=LIMITS[1]).contains(&limit), "{limit:?}");
        assert_eq!(longest_look(), limit);
    }
}
