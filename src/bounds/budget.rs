//! So many bytes for one purpose, and what holds them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Bytes that may be held at a time for one purpose. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    most: usize,
    held: AtomicUsize,
    waiting: AtomicUsize,
    returned: Notify,
}

/// Bytes that are held; given back when it is dropped.
#[derive(Debug)]
pub struct Charge {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    /// A budget of so many bytes, of which none is held.
    #[must_use]
    pub fn new(most: usize) -> Budget {
        Budget(Arc::new(Inner {
            most,
            held: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            returned: Notify::new(),
        }))
    }

    /// Bytes held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.held.load(Ordering::SeqCst)
    }

    /// Bytes that may be held.
    #[must_use]
    pub fn most(&self) -> usize {
        self.0.most
    }

    /// Holds more, whether there is room or not: for what is there already.
    #[must_use]
    pub fn charge(&self, bytes: usize) -> Charge {
        self.0.held.fetch_add(bytes, Ordering::SeqCst);
        Charge { budget: self.clone(), bytes }
    }

    /// Holds more where there is room for it. Where nothing is held, anything may be: what is larger than the budget goes
    /// alone.
    #[must_use]
    pub fn try_charge(&self, bytes: usize) -> Option<Charge> {
        let mut charge = Charge { budget: self.clone(), bytes: 0 };
        charge.try_grow(bytes).then_some(charge)
    }

    /// True where there is room for so many more.
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        self.0.has_room(self.held(), bytes)
    }

    /// Waits until there is room for so many more. It may be gone again at once: nothing is held by waiting.
    pub async fn room_for(&self, bytes: usize) {
        let _waiting = Waiting::new(&self.0);
        loop {
            // Registered before looking, so that what is given back while looking is not missed.
            let mut returned = std::pin::pin!(self.0.returned.notified());
            returned.as_mut().enable();
            if self.has_room(bytes) {
                return;
            }
            returned.await;
        }
    }
}

impl Inner {
    fn has_room(&self, held: usize, bytes: usize) -> bool {
        held == 0 || held.saturating_add(bytes) <= self.most
    }
}

/// Counts who waits, so that nothing need be told while nobody does.
struct Waiting<'a>(&'a Inner);

impl Waiting<'_> {
    fn new(inner: &Inner) -> Waiting<'_> {
        inner.waiting.fetch_add(1, Ordering::SeqCst);
        Waiting(inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Charge {
    /// Bytes that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds so much more; false where there is no room for it, and then nothing has changed.
    #[must_use]
    pub fn try_grow(&mut self, bytes: usize) -> bool {
        self.try_grow_leaving(bytes, 0)
    }

    /// As [`Charge::try_grow`], and leaves so much of the budget to others.
    #[must_use]
    pub fn try_grow_leaving(&mut self, bytes: usize, others: usize) -> bool {
        let inner = &self.budget.0;
        let own = self.bytes;
        let taken = own.saturating_add(bytes).saturating_add(others);
        // Never more for a moment than is kept: that would look like no room to those who wait.
        let taken = inner.held.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |held| {
            inner.has_room(held - own, taken).then(|| held + bytes)
        });
        self.bytes += taken.map_or(0, |_| bytes);
        taken.is_ok()
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let inner = &self.budget.0;
        inner.held.fetch_sub(self.bytes, Ordering::SeqCst);
        if inner.waiting.load(Ordering::SeqCst) > 0 {
            inner.returned.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn a_budget_is_kept_and_what_is_larger_goes_alone() {
        let budget = Budget::new(100);
        let large = budget.try_charge(1000).expect("nothing else is held");
        assert!(budget.try_charge(1).is_none());
        drop(large);
        let mut first = budget.try_charge(60).unwrap();
        assert!(budget.try_charge(41).is_none());
        let second = budget.try_charge(40).unwrap();
        assert!(!first.try_grow(1) && budget.held() == 100);
        drop(second);
        assert!(first.try_grow(1000), "it is alone");
        drop(first);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn who_waits_for_room_goes_on_when_there_is_some() {
        let budget = Budget::new(10);
        assert!(budget.room_for(100).now_or_never().is_some(), "nothing is held");
        let _other = budget.charge(1);
        let charge = budget.charge(15);
        let mut waits = Box::pin(budget.room_for(9));
        assert!(waits.as_mut().now_or_never().is_none());
        drop(charge);
        assert!(waits.now_or_never().is_some());
    }
}
