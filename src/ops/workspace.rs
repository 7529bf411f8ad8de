//! Scratch memory of a launch.

use crate::Error;

/// Device memory for intermediate results, of at least the bytes that `workspace_size` names. What it holds before and after a
/// launch does not matter. Launches that may run at the same time need one each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workspace {
    /// Its address, a multiple of 16. Anything if there are no bytes; null too if none are needed.
    pub address: u64,
    /// Its size.
    pub bytes: usize,
}

impl Workspace {
    /// None, for launches that need none.
    pub const NONE: Self = Self { address: 0, bytes: 0 };

    /// Checks it against the bytes that a launch needs. Its alignment is checked even if it needs none, lest a program that
    /// works with one kernel fail with another.
    pub(super) fn check(&self, needed: usize) -> Result<(), Error> {
        if self.bytes < needed {
            return Err(Error::argument(
                "workspace.bytes",
                self.bytes,
                format!("at least the {needed} that workspace_size says"),
            ));
        }
        if self.address == 0 && needed > 0 {
            return Err(Error::argument(
                "workspace.address",
                "a null address",
                format!("the address of {needed} bytes"),
            ));
        }
        if self.bytes > 0 && !self.address.is_multiple_of(ALIGNMENT) {
            return Err(Error::argument(
                "workspace.address",
                format!("address {:#x}", self.address),
                format!("a multiple of {ALIGNMENT}"),
            ));
        }
        Ok(())
    }
}

/// What an address is a multiple of.
const ALIGNMENT: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(address: u64, bytes: usize, needed: usize) -> String {
        Workspace { address, bytes }.check(needed).unwrap_err().to_string()
    }

    #[test]
    fn what_is_needed_must_be_there() {
        for (address, bytes, needed) in
            [(0, 0, 0), (1, 0, 0), (0, 64, 0), (16, 64, 0), (16, 64, 64), (0x30, 65, 64)]
        {
            let workspace = Workspace { address, bytes };
            assert_eq!(workspace.check(needed), Ok(()), "{workspace:?} for {needed}");
        }
        assert_eq!(Workspace::NONE.check(0), Ok(()));
        assert_eq!(
            refused(16, 63, 64),
            "workspace.bytes: 63 is not valid; expected at least the 64 that workspace_size says"
        );
        assert_eq!(
            refused(0, 0, 1),
            "workspace.bytes: 0 is not valid; expected at least the 1 that workspace_size says"
        );
        assert_eq!(
            refused(0, 64, 64),
            "workspace.address: a null address is not valid; expected the address of 64 bytes"
        );
    }

    #[test]
    fn an_address_that_is_not_aligned_is_refused_whether_it_is_needed_or_not() {
        for needed in [0, 64] {
            let message = refused(0x18, 64, needed);
            assert_eq!(message, "workspace.address: address 0x18 is not valid; expected a multiple of 16");
        }
    }
}
