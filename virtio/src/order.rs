//! Giving chains back in the order in which they were taken, whatever the order in which a device is done
//! with them (virtio 1.3 §2.7.9, §2.8.8).

use crate::queue::QueueError;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    head: u16,
    /// Bytes written, once the device is done with it.
    done: Option<u32>,
}

/// The chains of a queue that are not back in the ring, oldest first.
#[derive(Debug)]
pub(crate) struct Order {
    /// As many as the queue has descriptors, used round and round.
    entries: Box<[Entry]>,
    /// The entry of each head; of those that are not in flight it may be any.
    places: Box<[u16]>,
    first: u16,
    count: u16,
    /// Those that are done.
    waiting: u16,
}

impl Order {
    /// For a queue of `size` entries, with nothing in flight.
    pub(crate) fn new(size: u16) -> Order {
        Order {
            entries: vec![Entry::default(); size.into()].into(),
            places: vec![0; size.into()].into(),
            first: 0,
            count: 0,
            waiting: 0,
        }
    }

    /// Chains that wait for an older one.
    pub(crate) fn waiting(&self) -> u16 {
        self.waiting
    }

    /// Chain `head` was taken.
    pub(crate) fn take(&mut self, head: u16) {
        let place = self.place(self.count);
        if let (Some(entry), Some(slot)) =
            (self.entries.get_mut(usize::from(place)), self.places.get_mut(usize::from(head)))
        {
            *entry = Entry { head, done: None };
            *slot = place;
            self.count = self.count.saturating_add(1);
        }
    }

    /// The chain taken last was given back as if it had not been taken. False if there is none, or it is done.
    pub(crate) fn untake(&mut self) -> bool {
        let Some(last) = self.count.checked_sub(1) else { return false };
        let is_done = self.entries.get(usize::from(self.place(last))).is_none_or(|last| last.done.is_some());
        if !is_done {
            self.count = last;
        }
        !is_done
    }

    /// The device is done with chain `head`.
    ///
    /// # Errors
    /// It is not in flight.
    pub(crate) fn finish(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        let place = self.places.get(usize::from(head)).copied().unwrap_or_default();
        let size = self.size();
        let age = place.checked_sub(self.first).unwrap_or(place.wrapping_add(size).wrapping_sub(self.first));
        match self.entries.get_mut(usize::from(place)) {
            Some(entry) if age < self.count && entry.head == head && entry.done.is_none() => {
                entry.done = Some(written);
                self.waiting = self.waiting.saturating_add(1);
                Ok(())
            }
            _ => Err(QueueError::NotInFlight { head }),
        }
    }

    /// Takes the oldest chain out, if it is done: its head, and bytes written.
    pub(crate) fn next_done(&mut self) -> Option<(u16, u32)> {
        let Entry { head, done } = *self.entries.get(usize::from(self.first)).filter(|_| self.count > 0)?;
        let written = done?;
        self.first = self.place(1);
        self.count = self.count.saturating_sub(1);
        self.waiting = self.waiting.saturating_sub(1);
        Some((head, written))
    }

    /// As many as a queue can have.
    fn size(&self) -> u16 {
        u16::try_from(self.entries.len()).unwrap_or(u16::MAX)
    }

    /// The place that is `age` after the first; both are at most 32768.
    fn place(&self, age: u16) -> u16 {
        let place = self.first.wrapping_add(age);
        place.checked_sub(self.size()).unwrap_or(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_first() {
        let mut order = Order::new(3);
        for round in 0..10 {
            assert_eq!(order.next_done(), None);
            order.take(2);
            order.take(0);
            order.take(1);
            order.finish(0, 10).unwrap();
            assert!(matches!(order.finish(0, 11), Err(QueueError::NotInFlight { head: 0 })));
            assert!(matches!(order.finish(3, 11), Err(QueueError::NotInFlight { head: 3 })));
            assert_eq!((order.next_done(), order.waiting()), (None, 1));
            assert!(order.untake(), "the last is not done");
            assert!(!order.untake(), "the one before is");
            assert!(matches!(order.finish(1, 11), Err(QueueError::NotInFlight { head: 1 })));
            order.finish(2, round).unwrap();
            assert_eq!(
                (order.next_done(), order.next_done(), order.next_done()),
                (Some((2, round)), Some((0, 10)), None)
            );
            assert_eq!(order.waiting(), 0);
            assert!(!order.untake());
        }
    }
}
