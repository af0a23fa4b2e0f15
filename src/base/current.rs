//! A value of one thread that is replaced as a whole while others use it.

use std::cell::RefCell;
use std::rc::Rc;

/// The current value, which is cheap to clone, such as an `Rc`. Clones of `Current` share it; a caller that took the
/// value keeps the version it took.
#[derive(Debug)]
pub struct Current<T>(Rc<RefCell<T>>);

impl<T> Clone for Current<T> {
    fn clone(&self) -> Current<T> {
        Current(Rc::clone(&self.0))
    }
}

impl<T: Clone> Current<T> {
    /// Starts with this value.
    pub fn new(value: T) -> Current<T> {
        Current(Rc::new(RefCell::new(value)))
    }

    /// A clone of the current value.
    pub fn get(&self) -> T {
        self.0.borrow().clone()
    }

    /// Replaces the value and returns the previous one.
    pub fn replace(&self, value: T) -> T {
        self.0.replace(value)
    }
}
