//! Medians and spread of a few rounds.

/// NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The `q`-quantile, 0 to 1, of `values`, which it sorts: the least value that so large a part of
/// them does not exceed.
pub fn quantile(values: &mut [u64], q: f64) -> Option<u64> {
    values.sort_unstable();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a position in a list"
    )]
    let rank = (values.len() as f64 * q).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied()
}

/// The lowest and the highest.
pub fn range(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| {
            (low.min(value), high.max(value))
        })
}

/// How far rounds lie from their median, in percent of it: half of the distance between the first
/// and the third quartile, which a single bad round does not change. Of three rounds or fewer, half of the
/// distance between the lowest and the highest.
pub fn spread(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let median = median(values);
    if sorted.len() < 2 || median == 0.0 {
        return 0.0;
    }
    let quarter = sorted.len() / 4;
    (sorted[sorted.len() - 1 - quarter] - sorted[quarter]) / 2.0 / median.abs() * 100.0
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn quantiles_are_values_that_were_there() {
        let mut values: Vec<u64> = (1..=1000).rev().collect();
        assert_eq!(quantile(&mut values, 0.5), Some(500));
        assert_eq!(quantile(&mut values, 0.99), Some(990));
        assert_eq!(quantile(&mut values, 1.0), Some(1000));
        assert_eq!(quantile(&mut [7], 0.999), Some(7));
        assert_eq!(quantile(&mut [], 0.5), None);
    }

    #[test]
    fn one_bad_round_of_seven_does_not_widen_the_spread() {
        assert_eq!(spread(&[100.0, 100.0, 101.0, 99.0, 101.0, 99.0, 10.0]), 1.0);
        assert_eq!(spread(&[5.0]), 0.0);
    }
}
