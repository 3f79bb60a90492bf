//! From a value to its place, and the values that an axis is labelled with.

/// Linear from 0, or logarithmic.
pub struct Scale {
    logarithmic: bool,
    low: f64,
    high: f64,
    /// Pixels of `low` and of `high`.
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl Scale {
    /// For values between `low` and `high`; its ends are values that are written at the axis.
    pub fn new(logarithmic: bool, (low, high): (f64, f64), from: f64, to: f64) -> Self {
        let high = if high > 0.0 { high } else { 1.0 };
        let ticks = if logarithmic && low > 0.0 {
            logarithmic_ticks(low, high)
        } else {
            linear_ticks(high)
        };
        let (first, last) = (ticks[0], ticks[ticks.len() - 1]);
        Self {
            logarithmic: logarithmic && low > 0.0,
            low: first,
            high: last,
            from,
            to,
            ticks,
        }
    }

    pub fn place(&self, value: f64) -> f64 {
        let part = if self.logarithmic {
            (value.max(self.low) / self.low).log10() / (self.high / self.low).log10()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + part * (self.to - self.from)
    }

    pub fn ticks(&self) -> &[f64] {
        &self.ticks
    }

    /// The last value that is written at the axis.
    pub fn high(&self) -> f64 {
        self.high
    }

    pub fn is_logarithmic(&self) -> bool {
        self.logarithmic
    }
}

/// From 0 to at least `high`, in four to six steps of a round number.
fn linear_ticks(high: f64) -> Vec<f64> {
    let about = high / 5.0;
    let decade = 10_f64.powf(about.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|digit| digit * decade)
        // Rounding must not add a step.
        .find(|step| *step >= about * 0.999)
        .unwrap_or(10.0 * decade);
    let mut ticks = vec![0.0];
    while ticks[ticks.len() - 1] < high * 0.999_999 {
        let count = f64::from(u32::try_from(ticks.len()).unwrap_or(u32::MAX));
        ticks.push(count * step);
    }
    ticks
}

/// 1, 2 and 5 of each decade from below `low` to above `high`; the decades alone where those are many.
fn logarithmic_ticks(low: f64, high: f64) -> Vec<f64> {
    let digits: &[f64] = if (high / low).log10() > 3.0 {
        &[1.0]
    } else {
        &[1.0, 2.0, 5.0]
    };
    let mut ticks = Vec::new();
    let mut decade = 10_f64.powf(low.log10().floor());
    loop {
        for digit in digits {
            let tick = digit * decade;
            ticks.push(tick);
            if tick >= high && ticks.len() > 1 {
                // Only the last one below `low` is needed.
                let first = ticks.iter().rposition(|tick| *tick <= low).unwrap_or(0);
                return ticks.split_off(first.min(ticks.len() - 2));
            }
        }
        decade *= 10.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_scales_begin_at_zero_and_have_round_steps() {
        let scale = Scale::new(false, (1.3, 2.6), 0.0, 100.0);
        assert_eq!(scale.ticks(), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(scale.place(1.5), 50.0);
        assert_eq!(
            Scale::new(false, (0.0, 24_000.0), 0.0, 1.0).ticks(),
            [0.0, 5000.0, 10_000.0, 15_000.0, 20_000.0, 25_000.0]
        );
    }

    #[test]
    fn logarithmic_scales_reach_around_their_values() {
        let scale = Scale::new(true, (300.0, 24_000.0), 0.0, 1.0);
        assert_eq!(scale.ticks().first(), Some(&200.0));
        assert_eq!(scale.ticks().last(), Some(&50_000.0));
        assert_eq!(scale.place(200.0), 0.0);
        let wide = Scale::new(true, (1.0, 1_000_000.0), 0.0, 6.0);
        assert_eq!(wide.ticks().len(), 7);
        assert!((wide.place(1000.0) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn nothing_but_zero_has_a_scale_too() {
        for logarithmic in [false, true] {
            let scale = Scale::new(logarithmic, (0.0, 0.0), 0.0, 1.0);
            assert_eq!(scale.place(0.0), 0.0);
        }
    }
}
