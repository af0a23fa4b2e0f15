//! What is in force on a thread, and is replaced as a whole while others use it.

use std::cell::RefCell;
use std::rc::Rc;

/// A place for a value that is cheap to clone, such as an `Rc`. Clones of the place share it. Who has taken the value
/// keeps what it took.
#[derive(Debug)]
pub struct InForce<T>(Rc<RefCell<T>>);

impl<T> Clone for InForce<T> {
    fn clone(&self) -> InForce<T> {
        InForce(Rc::clone(&self.0))
    }
}

impl<T: Clone> InForce<T> {
    /// With its first value.
    pub fn new(value: T) -> InForce<T> {
        InForce(Rc::new(RefCell::new(value)))
    }

    /// What is in force now.
    pub fn now(&self) -> T {
        self.0.borrow().clone()
    }

    /// Puts another value in force, and gives back the one that was.
    pub fn replace(&self, value: T) -> T {
        self.0.replace(value)
    }
}
