"""How people and models write an answer: what is right, and what must stay wrong.

Each verdict is what a careful marker would say who knows the expected answer alone.
"""
# ruff: noqa: E501

# gold: right, wrong
Table = dict[str, tuple[list[str], list[str]]]

NUMBERS: Table = {
    '18': (
        [
            'Answer: over 9 days she earns 18', 'She earned it in over 9 days.\nThe answer is 18.', 'The answer is definitely not 17, it is 18.',
            'The answer is 18, or more precisely 18.0', 'She needs at least 18', 'The answer for kids over 9 is 18', 'Over 9 days she earns 18',
            '<answer><b>18</b></answer>', 'The answer is <b>18</b>.', '<p>18</p>', 'The answer is:<br>18', '9+9 => 18', 'Total -> 18', 'Answer: 9+9 → 18',
            '==> 18', '9 + 9 \\Rightarrow 18', 'Answer:\n> 18', 'Let us see.\n>> 18', "So the answer isn't 16 or 17, it's 18.",
            'The answer, then, is 18 (9+9).', 'Answer: <b>18</b> (9+9)', 'Answer: 18\n\nLet me check: 9 + 9 = 18. 18 - 2 = 16.',
            'Final answer\n============\n18', '***Final Answer:*** 18 (9*2)', 'Final Answer (eggs): 18 (9*2)', '<answer>18', 'The answer is 18 Rs.',
            'Answer: She sold **18** clips altogether in April and May.', 'Answer: 18', '**Answer:** 18', '**Answer**: 18', 'answer: 18.', 'ANSWER: $18',
            'Answer: 18 (which is 50% more than 12)', 'Final answer: 18', 'Final Answer: **18**', '**Final Answer:** 18 apples',
            '**Final Answer: 18** eggs, since 9 + 9 = 18 and 3 were left', '### Final Answer\n18', '### Final Answer\n\n**18**',
            '## Final Answer:\n18 eggs (9 a day for 2 days)', '### **Final Answer**\n\n$18$\n', '**Final Answer**\n\n18', 'Final answer\n18', 'Final answer 18',
            '**Final answer** 18 (9 * 2)', '#### Final Answer\n18 dollars (2 more than 16)', 'Answer: $18 (= 9 * 2)',
            'Answer: 18, because 9 * 2 = 18 and 3 + 4 = 7', 'Answer: 18, 2 more than 16', 'Answer: 18, which is 2 more than 16.',
            'Answer: 18 since there are 2 days of 9', 'The answer is 18 (2 * 9)', 'The answer is 18, as 20 - 2 is 18, not 20', 'The answer was 18 of 20',
            'The answer would be 18, 2 more than 16', 'The answer should be 18 because of the 2 hens', 'The answer will be 18.',
            'The answer must be 18, as 16 is too small.', 'The answer equals 18.', 'The answer comes to 18 dollars for 2 days.',
            'The answer to question 2 is 18.', 'The answer (in dollars) is 18, for 3 days.', 'The answer for 7 days is 18 eggs.',
            'The final answer is $\\boxed{18}$.', 'Final Answer: \\(18\\) (for 2 days)', 'Final Answer: $$18$$', "The answer isn't 17, it's 18.",
            'The answer is not 17 but 18.', "The answer isn’t 17. It's 18.", 'The answer cannot be 17, so it is 18', 'It is 18, not 17.',
            'She has 18 eggs, not 17', 'It is 18 rather than 20.', '{"answer": 18}', '{"answer": "18"}', '{"answer": 18, "because": "9 * 2"}',
            '{"steps": [9, 2], "answer": 18, "check": 20}', '{"final_answer": "18 eggs", "days": 2}', '```json\n{"answer": 18, "confidence": 0.9}\n```',
            "{'answer': 18, 'unit': 'eggs per 2 days'}", '<answer>{"answer": 18}</answer>', '<answer>18 (9 * 2)</answer>',
            '<answer>18, since 9 + 9 = 18</answer>', '<answer>Answer: 18</answer>', '<answer>Final answer: 18 (2 more than 16)</answer>',
            '<answer>**18**</answer>', '<answer>$18$</answer>', '<answer>18 because 20 - 2 is 18</answer>', '\\boxed{18}', '\\boxed {18}', '\\boxed 18',
            '$\\boxed 18$ in 2 days', '\\boxed{18} \\boxed{}', '\\boxed{ 18 }\nSo \\boxed{ }', '\\boxed{18 \\text{ m}^2}', '\\boxed{18\\,\\mathrm{cm}^3}',
            '\\boxed{18 cm^2}', '\\boxed{18\\text{ cm}^{2}}', '\\boxed{18 m²}', '\\boxed{18~\\text{units}^2}', '\\boxed{18\\;\\text{km/h}}',
            '\\boxed{18^\\circ}', '\\boxed{18\\%}', '\\boxed{\\$18}', '\\boxed{\\text{Rs. }18}', '\\boxed{\\textbf{18}}', '\\boxed{x = 18}',
            '\\boxed{9 \\times 2 = 18}', '\\boxed{\\frac{36}{2}}', '\\boxed{\\dfrac{27}{1.5}}', '\\boxed{\\frac{4.5}{0.25}}', '\\boxed{1.8 \\times 10^1}',
            '\\boxed{1.8\\cdot10^{1}}', 'The area is 18 m². The answer is 18 m²', 'The answer is 18 cm^2, for 2 squares', 'The answer is 18 square feet',
            'The answer is 18 ft^2.', 'The answer is 18 m^3', 'The answer is 18 m/s^2.', 'The answer is Rs.18', 'The answer is Rs. 18',
            'The answer is Rs 18 for 2', 'The answer is US$18.', 'The answer is USD 18', 'The answer is 18 USD', 'The answer is ₹18', 'The answer is €18.00',
            'The answer is 1.8e1', 'The answer is 1.8 × 10¹', 'The answer is 18.0', 'The answer is +18', 'The answer is 018', 'The answer is exactly 18.',
            'The answer is approximately 18', 'Answer: approximately 18 (9 * 2)', 'Answer: about 18 eggs, since 9 * 2 = 18', 'Answer: x = 18',
            'Answer: Tom has 18 eggs (9 + 9).', 'Answer: Tom has 18 eggs, since he had 24 before', 'Answer: Tom had 20 eggs and ate 2, so he has 18.',
            'Answer: 9 * 2 = 18', 'Answer: 9 * 2 = 18 eggs (in 3 days)', 'Answer: She lays 9 eggs a day. In 2 days that is 9 * 2 = 18 eggs.',
            'Answer: a total of 18 (9 + 9)', 'Question: how many?\nAnswer: 18 (9 * 2)', 'Answer: 9 + 9 = 18\n#### 18', 'Answer: 17\n#### 18',
            '#### 17\nAnswer: 18', 'Answer: 17\n\nFinal answer: 18', 'The answer is 17. Wait.\nThe answer is 18.', '\\boxed{17} is wrong. Final answer: 18',
            'Answer:\n18', 'Answer:\n\n- 18 eggs', 'Answer = 18', 'Answer - 18', 'Answer → 18', '> **Answer:** 18 (2 a day)', '* Answer: 18',
            'Correct answer: 18', 'My answer: 18 (not 20)', 'The answer is eighteen, 18.', '#### 18 (9 * 2)', '#### 18, since 2 * 9', '#### Rs.18',
            '#### 18 m^2', 'Answer: `18`', 'Answer: _18_', 'The answer is “18”.', 'The answer is: 18 – as 20 is too many', 'The answer is 18 on May 5, 2024.',
            'The answer is 18 at 11:05', 'At 11:05 she had 20. The answer is 18.', 'It was May 5, 2024. She has 18', 'Answer: 18 eggs at 11:05',
            '<think>Answer: 17</think>Answer: 18', 'The answer is 18\xa0dollars', 'The answer is\xa018', 'Answer:\xa018\xa0(9\xa0+\xa09)',
            'Answer: **18** (9 + 9', 'The answer is 18 (or 18.0)', 'The answer is 36/2', '<|channel|>final<|message|>18', 'ans = 18 (9 * 2)',
            '**Ans:** 18 (9 * 2)', '**Ans: 18** (9 + 9)', 'Ans - 18 (2 days)', 'Ans:- 18', 'Hence ans is 18, for 2 days', 'Q: how many?\nA: 18 (2 a day)',
            'A: 18 (2 days)', 'Result: 18 (9 * 2)', '**Result:** 18 eggs (9 a day)', 'Final result: 18 (after 2 days)', 'Solution: 18 (9 * 2)',
            'Total: 18 (9 + 9)', '答案：18（9+9）', '<h2>Final Answer</h2>\n<p>18</p>', '<span class="x">18</span>', '<span class="x2">18</span>', '<h3>18</h3>',
            '<answer><h1>18</h1></answer>', '<answer><span style="color: #00ff00">18</span></answer>', '<font size=2>18</font>',
            '<answer>18 m<sup>2</sup></answer>', '\\boxed{18 m/s^2}', '\\boxed{18\\text{ m/s}^2}', '<answer>18 kg/m^3</answer>', '<answer>18 ft/s^{2}</answer>',
            '<answer>18 m s^{-2}</answer>', '\\boxed{18 \\frac{m}{s^2}}', '<answer>18 W/m^2</answer>', 'The answer is 18; 9 + 9 = 18.',
            'The correct answer is indeed 18, 9 * 2', 'The answer has to be 18, since 9 * 2', 'The answer you are looking for is 18 (9 * 2).',
            'The answer we get is 18, for 2 days.', 'Answer >> 18', 'Answer: <18>', 'Answer: 18 = 9 + 9', '18 eggs is the answer, for 2 days.',
            'So 18 is the final answer (9 * 2).', '#### The answer is 18, 9 * 2', '#### Total: 18 (9 + 9)', 'The answer is ~~17~~ 18.',
            'The answer is <del>17</del> 18',
        ],
        [
            'The answer is definitely not 18', 'definitely not 18', 'The answer is less than about 18.', 'at least 18', 'The answer is at most 18.',
            '<answer>at least 18</answer>', 'Answer: over 18', '18 or more', '<answer>18 eggs or more</answer>', 'The answer is 18 or more.',
            '<answer>18+</answer>', 'over 18', '<answer>up to $18</answer>', '<answer>&gt;18</answer>', 'x &lt; 18', 'x >= 18',
            '<answer>greater than or equal to 18</answer>', 'Answer: over 18 days she earns 36', 'The answer is 18 or 20', 'Answer: 18 or 20',
            'Final answer: 17 or 18', 'Answer: 18 and 20', 'Answer: 17, 18', 'Answer: 18, 20', 'The answer is 18, 20 and 22.', 'Answer: 18; 20',
            '### Final Answer\n18 or 20', 'Answer: 18 (or 20)', 'Answer: x = 18, x = 20', 'Answer: 18 & 20', 'The answer is not 18', "The answer isn't 18.",
            'The answer is not 18. I do not know it.', 'The answer cannot be 18', 'She had 17, not 18', "The answer isn't 18, it's 17.",
            'The answer is not 18 but 17', 'It is 17 rather than 18.', 'She does not have 18', '<answer>not 18</answer>', 'Answer: 18-20', 'Answer: 18 - 20',
            'Answer: 18–20', 'The answer is 18 to 20', 'The answer is between 18 and 20', 'Answer: between 17 and 18', 'Answer: from 17 to 18',
            'The answer is more than 18', 'The answer is less than 18', 'Answer: > 18', '> 18', 'x > 18', 'Answer: <18', 'The answer is greater than 18.',
            'Answer: fewer than 18 eggs', 'The answer is anything other than 18', 'Answer: 17 (18 - 1)', 'Answer: 17 (18 is wrong)',
            'Answer: 17, 1 less than 18', 'Answer: 17, since 18 - 1 = 17', 'Final Answer: 20 (18 + 2)', '### Final Answer\n20, because 18 + 2 = 20',
            '**Final Answer: 20** eggs, 2 more than 18', 'The answer would be 20, as 18 + 2 is', 'The answer is 20, which is 2 more than 18', '18\nAnswer: 20',
            'Answer: 18\nFinal answer: 20', 'Answer: 18\n#### 20', '\\boxed{18}\n### Final Answer\n20', 'Answer: 18\n\\boxed{20}',
            'The answer is 18. No, the answer is 20.', 'Answer: -18', 'Answer: −18', 'Answer: - 18', 'The answer is minus 18', 'Answer: negative 18',
            '\\boxed{-18}', 'Answer: 18%\nFinal answer: 0.18', 'Answer: 0.18', 'Answer: 1.8', 'Answer: 180', 'Answer: 1,8', 'Answer: 18,00', 'Answer: 18,5',
            'Answer: 18.5', "Answer: 1'8", "Answer: 18'000", 'Answer: 18\xa0000', 'Answer: 18 000', 'Answer: 18.000,50', 'Answer: 18,000', "Answer: 5'18",
            "Answer: 18'5", 'The answer is 18 thousand', 'The answer is 18 hundred', 'Answer: 18k', 'Answer: $18M', 'Answer: 18 million dollars',
            'Answer: 18 lakh', 'Answer: 18 \\times 10^3', 'Answer: 18 × 10²', '\\boxed{18 \\times 10^{-2}}', 'Answer: 1.8 × 10^18', 'Answer: 18e2',
            'Answer: 18^2', '\\boxed{18^2}', '\\boxed{18²}', 'Answer: 18²', 'Answer: √18', '\\boxed{\\sqrt{18}}', '\\boxed{\\frac{18}{5}}',
            '\\boxed{\\frac{1.8}{5}}', '\\boxed{\\frac{18}{}}', 'Answer: 18/5', 'Answer: 5/18', 'Answer: 18 + 2', 'Answer: 18 * 2', 'Answer: 20 - 2',
            'Answer: 9 * 2', 'Answer: 2 * 18 = 36', 'Answer: 18 = 17 + 2 = 19', 'Answer: 1/18', 'Answer: 3 18/5', 'Answer: 18:05', 'The answer is 18:30.',
            'Answer: 18:00:00', 'Answer: 18h30', 'The answer is 05:18', 'The meeting is at 18:05', 'So it ends at 05:18', 'The answer is May 18, 2024',
            'Answer: 18 May 2024', 'Answer: May 18', 'The answer is 18th of March', 'Answer: March 18th', 'Answer: 2024-05-18', 'It was on 2024-05-18',
            'Answer: 18.05.2024', 'Answer: 18/05/2024', '18-05-2024', 'Answer: 5-18-2024', 'Answer: Dec. 18', 'The ratio is 18:5', 'Answer: 18:1',
            '{"answer": 17, "other": 18}', '{"answer": "17 or 18"}', '{"answer": [17, 18]}', '{"answer": 17}', '{"other": 18, "answer": 17}',
            '{"answer": "18:05"}', '<answer>18, 20</answer>', '<answer>18 and 20</answer>', '<answer>18 (or 20)</answer>',
            '<answer>18 eggs and 3 hens</answer>', '<answer>20 (18 + 2)</answer>', '<answer>17, since 18 - 1 = 17</answer>', '<answer>18-20</answer>',
            '<answer>18 to 20</answer>', '<answer>18:05</answer>', '<answer>May 18</answer>', '<answer>1 8</answer>', '\\boxed{}', '\\boxed 17 18',
            '\\boxed{18} \\boxed{17}', '\\boxed{18} and \\boxed 17', '\\boxed{17} \\boxed{}\nnot 18', 'Answer: H18', 'Answer: x_18', 'Answer: 18_5',
            'Answer: １８', 'Answer: 18½', 'Answer: 18.0.1', 'Answer: 1 8', 'Answer:', 'Answer: none', 'Final Answer', '### Final Answer\n', 'Answer: eighteen',
            'Answer: NaN', '18 people asked. Answer: 20', 'Answer: 18 hours and 30 minutes', 'Answer: 18 dollars and 50 cents', 'Answer: 10^18',
            '\\boxed{10^{18}}', 'Answer: 118', 'Answer: 181', 'Answer: 2 hours 18 minutes', '18x', '<answer>18x</answer>', '<answer>18i</answer>',
            '\\boxed{18\\pi}', '<answer>18\\pi</answer>', '<answer>18π</answer>', '<answer>18 π</answer>', '\\boxed{18\\sqrt2}', 'The answer is 18x.',
            'The answer is 18\\pi.', 'The answer is $18\\pi$ cm.', 'The answer is 18π cm', 'Answer: 18i', 'Answer: $18i$', '#### 18x', '#### 18\\pi',
            '#### 18π', 'so it is 18π', 'so it is 18x', 'So we get $18\\pi$.', 'The answer is $18x^2$.', '\\boxed{18y}', '\\boxed{18n}', '\\boxed{18xy}',
            '\\boxed{18a}', '\\boxed{18 x}', '\\boxed{18e}', '\\boxed{18\\theta}', '\\boxed{18 \\cdot x}', '\\boxed{18\\sin x}', '\\boxed{18 + x}',
            '\\boxed{x + 18}', '\\boxed{x - 18}', '\\boxed{18 - x}', '<answer>18 + π</answer>', 'twice 18', 'The answer is twice 18.', 'Answer: twice 18',
            '18 squared', 'The answer is 18 squared.', '<answer>18 squared</answer>', '18 cubed', 'Answer: 18 cubed', 'half of 18', 'The answer is half of 18.',
            'Answer: half of 18', '<answer>half of 18</answer>', '#### half of 18', '#### twice 18', 'double 18', 'Answer: triple 18', 'Answer: a third of 18',
            'Answer: one third of 18', 'Answer: a quarter of 18', 'Answer: the square root of 18', 'Answer: square root of 18', 'Answer: the square of 18',
            'Answer: the cube of 18', 'Answer: 18 to the power of 2', 'Answer: 18 to the 2nd power', 'Answer: 18 times 2', 'The answer is 18 times 2.',
            'Answer: 18 plus 2', 'Answer: 18 minus 2', 'Answer: 18 divided by 2', 'Answer: 18 multiplied by 3', 'The answer is three times 18',
            'Answer: 18 factorial', '18 dozen', 'Answer: 18 dozen', 'The answer is 18 dozen eggs.', '<answer>18 dozen</answer>', '#### 18 dozen',
            '\\boxed{18 \\text{ dozen}}', 'Answer: 18% of 50 = 9', 'Answer: half 18', 'Answer: ½ of 18', 'Answer: the reciprocal of 18',
            'Answer: the opposite of 18', 'Answer: the negative of 18', 'Answer: two to the 18', 'Answer: 18 ½', '#### at least 18', '#### at most 18',
            '#### up to 18', '#### over 18', 'Answer: 18 at most', 'Answer: 18 and above', 'Ans: at least 18', 'Result: at least 18', 'Answer: 18 at least',
            '<answer>18 at least</answer>', 'Answer: 18 < x < 20', 'Answer: 18 200', '<answer>x<sub>18</sub></answer>', '<answer>1<br>8</answer>',
            'The answer is 1<p>8', '<answer><del>18</del></answer>', '~~18~~', 'Ans: 17\n18 is wrong', 'Answer: 18\nAns: 17', '答案是17，不是18', 'Answer: 18..20',
            'Answer: 18…20', 'Answer: 18 through 20', 'Answer: 18 vs 20', 'Answer: 18, maybe 20', 'Answer: 18 : 20', '\\boxed{[18, \\infty)}',
            '\\boxed{(18, \\infty)}', 'Answer: 18 ± 2', 'Answer: 18 +/- 2', 'Answer: 18-Jun-2024', 'Answer: 18 feet 6 inches', 'Answer: 18 ft 6 in',
            'Answer: 18\' 6"', 'Answer: 18 lb 4 oz', 'Answer: 18 R 2', 'Answer: 18 remainder 2', 'Answer: 18 and a half', '<answer>18 and a half</answer>',
            'Answer: 18 and a quarter', 'Answer: 18 point 5', 'Answer: 18B', 'Answer: 18 hundredths', 'Answer: 18 tenths', 'Answer: 18 hundredth',
            'Answer: 18 thousandths', 'Answer: 18 millionths', 'Answer: (18) * 2', '{"answer": [18, 20]}', '{"answer": null, "n": 18}',
            '{"answer": "", "n": 18}', '{"answer": "18x"}',
        ],
    ),
    '-18': (
        [
            'Answer: -18', 'The answer is not -17, it is -18.', 'x is not 5 -> -18', 'It is less than 0: -18',
        ],
        [
            'The answer is not -18.', 'The answer is more than -18', '<answer>more than -18</answer>', '<answer>x > -18</answer>', 'x > -$18',
            '<answer>≥ -18</answer>', 'at least -18', '<answer>not -18</answer>', 'It is 17 rather than -18', '<answer>-18 or less</answer>',
        ],
    ),
    '-3.5': (
        [
            'The answer is $-\\frac{7}{2}$.', '\\(-\\frac{7}{2}\\)', 'So we get -\\frac{7}{2}', 'Answer: $-\\frac72$', '<answer>$-\\dfrac{7}{2}$</answer>',
            '$- \\frac{7}{2}$', '\\boxed{x = -\\frac{7}{2}}', '-3\\frac{1}{2}',
        ],
        [
            '\\boxed{\\frac{7}{2}}', 'Answer: 7-\\frac{7}{2}', 'x > -\\frac{7}{2} \\text{ or } 1',
        ],
    ),
    '1234': (
        [
            "The answer is 1'234", 'The answer is 1’234', 'Answer: 1\xa0234', 'Answer: 1\u202f234', 'Answer: 1\u2009234', 'Answer: 1,234 (1,200 + 34)',
            '\\boxed{1{,}234}', '\\boxed{1\\,234}', 'Answer: 1.234 × 10^3', '\\boxed{1.234 \\times 10^{3}}', 'Answer: 1.234e3', 'Rs.1,234',
            'Answer: Rs. 1,234.00', 'Answer: 1.234,00', '\\boxed{\\text{Rs.}1,234}', "Answer: $1'234 for 2", '{"answer": "1,234"}',
            '{"answer": 1234.0, "n": 5}', "Answer: 1'234.0", '\\boxed{1\\,234}', 'Answer: 1 234',
        ],
        [
            'The answer is 1.234', 'Answer: 1,23', 'Answer: 12,34', "Answer: 1'23", "Answer: 1'2345", 'Answer: 1.234,5', 'Answer: 1;234', 'Answer: 1, 234',
            "Answer: 1'234'5", 'Answer: 1.234.5', 'Answer: 1/234', 'Answer: 1.234 × 10^2', 'Answer: 1.234 × 10³ or 5', 'Answer: 1-234', "Answer: -1'234",
            'Answer: −1,234', 'Answer: 1,2,3,4', 'Answer: 1,234,5', "Answer: 1'234'567", 'Answer: 12:34',
        ],
    ),
    '1234.5': (
        [
            'The answer is 1.234,50', 'Answer: €1.234,5', "Answer: 1'234.50", 'Answer: 1\xa0234.5', 'Answer: 1,234.50 (1,200 + 34.5)', '\\boxed{1.234,50}',
            'Answer: 1.234,50 €', '\\boxed{\\frac{2469}{2}}', '\\boxed{\\frac{2,469}{2}}', 'Answer: 1.2345 \\times 10^3', 'Answer: 1234 1/2',
            '\\boxed{\\frac{1234.5}{1}}', 'Answer: 1 234.5',
        ],
        [
            'Answer: 1.234.50', 'Answer: 1,234,50', 'Answer: 1.23450', 'Answer: 1.234,505', 'Answer: 1,234.5,0', 'Answer: 12.345,0', 'Answer: 1.234,5.0',
            'Answer: -1.234,50', 'Answer: 1.234, 50', "Answer: 1'234,50",
        ],
    ),
    '0.5': (
        [
            'Answer: 1/2', '\\boxed{\\frac12}', '\\boxed{\\tfrac{1}{2}}', '\\boxed{\\frac{1.5}{3}}', 'Answer: .5 (half of 1)', '\\boxed{\\cfrac{1}{2}}',
            '\\boxed{5 \\times 10^{-1}}', 'Answer: 5 × 10⁻¹', '\\boxed{0.5}', 'Answer: 0.50', '\\boxed{\\frac{ 1 }{ 2 }}', 'Answer: 1/2 or 0.5',
            'Answer: 1/2 (0.5)', '<answer>1/2 = 0.5</answer>', '<answer>0.5 (1/2)</answer>', '½', 'Answer: ½', '<answer>½</answer>', '\\boxed{½}', '#### ½',
            'The answer is ½ cup.', '½ (half)', 'Answer: ½ kg', 'so it is ½', 'Answer: 1⁄2', 'Answer: 1∕2', '\\boxed{{1 \\over 2}}', '\\boxed{1 \\over 2}',
            '\\boxed{\\frac{1}2}', '\\boxed{\\sfrac{1}{2}}', '\\boxed{\\nicefrac{1}{2}}',
        ],
        [
            'Answer: 50%', '\\boxed{50\\%}', 'Answer: 5 × 10^1', 'Answer: 2/1', 'Answer: -1/2', '\\boxed{-\\frac{1}{2}}', 'Answer: 0,5 or 1', 'Answer: 1:2',
            'Answer: 1 to 2', 'Answer: 1 out of 2', 'Answer: 1 in 2', '\\boxed{\\frac{1.5}{2}}', '\\boxed{\\frac{5}{1}}', 'Answer: 0.05', 'Answer: 5',
            '\\boxed{1 \\frac{1}{2}}', '1/2x', '\\frac{1}{2}x', '\\boxed{\\frac{1}{2}\\pi}',
        ],
    ),
    '0.75': (
        [
            '\\boxed{\\frac{1.5}{2}}', 'Answer: 3/4 of 8', '\\boxed{\\frac{3}{4}\\text{ cup}}', 'The answer is $\\frac{3}{4}$ (6/8)',
        ],
        [
            '\\boxed{\\frac{2}{1.5}}', 'Answer: 3 / 5', 'Answer: 75%',
        ],
    ),
    '-5': (
        [
            'Answer: -5', 'Answer: −5 (5 below 0)', '**Final Answer:** –5', '### Final Answer\n-5', 'Final answer -5', 'The answer is minus 5', '\\boxed{-5}',
            '\\boxed -5', '{"answer": -5}', '{"answer": "−5"}', 'Answer: negative 5, since 0 - 5 = -5', '\\boxed{-\\frac{10}{2}}', 'Answer: -5°C',
            'Answer: $-5$', 'Answer: -$5',
        ],
        [
            'Answer: 5', 'Answer: 5 - 10', '- Answer: 5', 'Answer:\n- 5', '{"answer": 5}', 'Answer: 0-5', 'Answer: -5 or 5', '\\boxed{\\pm 5}', 'Answer: ±5',
            'Answer: -5:00', 'Final answer - 5',
        ],
    ),
    '50': (
        [
            'Answer: 50%', 'The answer is Rs.50 (half of Rs.100)', 'Answer: 50 percent of 100', '\\boxed{50\\%}', 'Rs.50', 'So it costs Rs.50', '#### Rs. 50',
        ],
        [
            'Answer: 0.50', 'Answer: 1/2', 'Answer: .50', 'Rs.500', 'Answer: Rs.-50',
        ],
    ),
    '3.5': (
        [
            '3½', '3 ½', 'Answer: 3½ hours', '<answer>3½</answer>', '\\boxed{3½}', '#### 3½', 'The answer is 3½ hours (210 minutes).', 'so 3½ hours',
            'Answer: 3 and 1/2', 'Answer: 3 and a half', 'Answer: 3 and a half hours',
        ],
        [
        ],
    ),
    '15000': (
        [
            '15 000', 'Answer: 15 000', '<answer>15 000</answer>', '\\boxed{15 000}', '#### 15 000', 'The answer is 15 000.', 'Answer: $15 000 (a year)',
            '15 000 dollars', '\\boxed{15\\ 000}', '\\boxed{15\\;000}', '\\boxed{15~000}', 'So it costs 15 000 dollars.', '15·10^3', 'Answer: 15 000 km',
            '€ 15 000', 'Answer: She pays 15 000 dollars.',
        ],
        [
        ],
    ),
    '12300': (
        [
            '12 300', 'Answer: 12 300 apples', '<answer>12 300</answer>', '12 300 apples', '#### 12 300', '\\boxed{12 300}',
            'The answer is 12 300 (12 300 = 12 000 + 300).',
        ],
        [
        ],
    ),
    '300': (
        [
        ],
        [
            '1 300',
        ],
    ),
    '216': (
        [
            '18 dozen', 'Answer: 18 dozen eggs', '<answer>18 dozen</answer>',
        ],
        [
            '216 dozen',
        ],
    ),
    '1234567': (
        [
            '1 234 567', 'Answer: 1 234 567', '1 234 567.0', '₹12,34,567', 'Answer: Rs. 12,34,567',
        ],
        [
        ],
    ),
    '42': (
        [
            'Answer: (6)(7) = 42', 'Answer: 6(7) = 42', 'Answer: 6·7=42', 'Answer: 6 times 7 equals 42', 'Answer: 100% - 58% = 42%',
            'The answer is 42 = 6 * 7.', 'The answer is 42, or 6 * 7.', '\\boxed{42 = 6 \\cdot 7}', '\\boxed{42\\,\\text{m}\\cdot\\text{s}^{-1}}',
            'Tom has 42 pens, not 40 or 41.', 'The answer is 40. Wait, no, it is 42.', 'I doubt that the answer is 40. It is 42.',
            'If the answer is 40, then 6 * 7 = 40, which is false. So it is 42.', "You might think the answer is 40, but it's 42.",
            "I don't think the answer is 40. It must be 42.", '42,00 €', '€42,00',
        ],
        [
            '\\boxed{42n}', '\\boxed{42 + n}', '\\boxed{n + 42}', '\\boxed{42\\sqrt3}', '\\boxed{e^{42}}', '\\boxed{42\\pi}', '\\boxed{42i}',
            '\\boxed{42 \\le x}', '42 dozen', '42 and a half', '42 bn', '42B', '42 tenths', '42 squared', '42 cubed', '42x', '42y', '42π', 'twice 42',
            'half of 42', 'double 42', 'triple 42', 'three times 42', 'a third of 42', 'square root of 42', '42 <= x', '16 h 42 min', '1 hour 42 minutes',
            '1 hour and 42 minutes', '5 feet 42 inches', '42 is wrong', '42 is not correct.', "42 isn't the answer", "I don't think the answer is 42.",
            'I doubt that the answer is 42', 'The answer is never 42', 'The wrong answer is 42.', 'An incorrect answer is 42',
            'If the answer is 42, I will eat my hat.', "You might think the answer is 42, but it's 43.", 'The answer is 42. Wait, no, it is 43.',
            'The answer is 42... no, 43.', 'Suppose the answer is 42.', '<p>4</p><p>2</p>', '<del>42</del>', '<span id="42"></span>', '<!-- 42 -->',
        ],
    ),
    '7': (
        [
        ],
        [
            '7a', '7b', '7 x',
        ],
    ),
    '-3': (
        [
        ],
        [
            '-3x', '-3i', '-3π', '-3 < x',
        ],
    ),
    '0.25': (
        [
            '¼', 'Answer: ¼ of the cake',
        ],
        [
            '1/4x', '\\boxed{\\frac{1}{4}\\pi}',
        ],
    ),
    '2500': (
        [
            '2 500', '$2 500', 'Answer: 2 500 m', 'Answer: He earns 2 500 dollars a month.', '\\boxed{2\\ 500}', '\\boxed{2~500}', '\\boxed{2 500 \\text{ km}}',
            '<answer>2 500 km</answer>', '<b>2 500</b>',
        ],
        [
        ],
    ),
}  # fmt: skip

LATEX: Table = {
    '3': (
        [
            '**Final Answer:** $3$', '### Final Answer\n$$3$$', '\\boxed {3}', '$\\boxed 3$', '\\boxed 3.', '$\\boxed{\\text{The answer is } 3}$',
            '\\boxed{3} \\boxed{}', 'Final answer: 3', 'Final Answer: \\(3\\)', 'Final Answer: \\[3\\]', 'Answer: 3', '**Answer**: $3$.', 'Answer: $x = 3$',
            'Answer: 3, since 1 + 2 = 3', 'The answer is $3$, because $1+2=3$.', 'The answer is 3. I hope it is correct.',
            'Final Answer: The final answer is $3$. I hope it is correct.', 'The final answer is $\\boxed{3}$.', 'The answer would be $3$.',
            'The answer is: $3$', '# Final Answer\n\n**3**', '### Answer\n$3$ (since $1+2=3$)', '**Final Answer**\n\n$$\nx = 3\n$$', '**Final answer** $3$',
            'Final Answer\n3', '{"answer": "3"}', '{"answer": 3}', '{"answer": "$3$", "n": 4}', '<answer>The answer is 3</answer>', '<answer>$3$</answer>',
            '<answer>Answer: $3$</answer>', '\\boxed{3}\\text{ and done}', '\\boxed{ 3 }', "The answer isn't 4.\nThe answer is 3.", 'Answer: $\\frac{6}{2}$',
            '\\boxed{3\\text{ cm}}', '\\boxed{3\\text{ cm}^2}', '\\boxed{3\\,\\mathrm{m}^3}', '\\boxed{3 \\mbox{ inches}}', 'Answer: $4$\nFinal answer: $3$',
            'The answer is $3$ (not $4$)', 'The answer is $3$, not $4$', 'Final Answer: 3\n\nThis uses 1 + 2.',
            'The value is 4 first.\n\n**Answer:** $3$ apples', 'Answer: $3.0$', 'Answer: `3`', 'so $x=3$.\nAnswer: $x=3$.',
        ],
        [
            'Final Answer: $4$', '### Final Answer\n$$4$$', '\\boxed {4}', '$\\boxed 4$', '\\boxed{3} \\boxed{4}', '\\boxed 3 \\boxed 4', 'Answer: $3$ or $4$',
            'Answer: 3 or 4', 'The answer is $3$ and $4$', 'The answer is not 3', "The answer isn't $3$.", 'The answer is $-3$', 'Answer: $3, 4$',
            'Answer: $3$, $4$', 'Answer: $3x$', 'Answer: $3^2$', 'Answer: $\\sqrt{3}$', 'Answer: $\\frac{3}{4}$', 'Answer: 3 + 4',
            '\\boxed{\\text{The answer is } 4}', '\\boxed{\\text{The answer is not } 3}', '\\boxed{\\text{3 or } 4}', 'Answer: $4$, since $3 + 1 = 4$',
            'Answer: 4 (3 + 1)', 'Answer: $3$\nFinal answer: $4$', 'The answer is 3. No: the answer is 4.', '{"answer": "4", "n": 3}', '{"answer": "3 or 4"}',
            '<answer>Answer: 4</answer>', '<answer>3 or 4</answer>', '\\boxed{}', 'Answer:', '### Final Answer', 'Answer: three or four', 'Answer: $(3, 4)$',
            'Answer: $\\{3\\}, 4$', 'Answer: $x = 3$ or $x = 4$', 'Answer: $3$ to $4$', 'Answer: $3$-$4$', 'Answer: between $3$ and $4$',
            'The answer is greater than $3$', 'Answer: $x > 3$', 'Answer: $x \\ne 3$', 'Answer: 30', 'Answer: $3$; $4$', 'Answer: 3\\%4',
            'I think 3 is wrong.\nAnswer: $4$', 'Answer: $\\pm 3$', 'Answer: 3:4', 'Answer: $3$ & $4$', 'Answer: $3$ $4$',
        ],
    ),
    '\\frac{1}{2}': (
        [
            '\\boxed\\frac{1}{2}', '\\boxed \\frac12', '### Final Answer\n\\[\n\\frac{1}{2}\n\\]', 'Final Answer: $\\frac{1}{2}$', 'Answer: $\\dfrac12$ (half)',
            'Answer: 1/2', 'Answer: 0.5', '### Final Answer\n$$\\frac{1}{2}$$', '\\boxed {\\frac{1}{2}}', 'The answer is $\\frac{1}{2}$, as $1 \\div 2 = 0.5$.',
            '{"answer": "\\\\frac{1}{2}"}', '\\boxed{\\text{Final answer: }\\frac{1}{2}}', '\\boxed{\\frac{1}{2}\\text{ m}^2}', 'Answer: $p = \\frac{1}{2}$',
            '½', '\\boxed{½}', 'Answer: ½', '{1 \\over 2}',
        ],
        [
            'Final Answer: $\\frac{2}{1}$', 'Answer: 1', 'Answer: 50%', 'Answer: $\\frac{1}{2}x$', 'Answer: $\\frac{1}{2}$ or $1$', 'Answer: $1 \\frac{1}{2}$',
            '\\boxed{\\frac{1}{2}} \\boxed{1}', 'Answer: 1:2', 'Answer: 0.05', 'Answer: $\\frac{1}{2}, \\frac{1}{3}$', 'Answer: $-\\frac{1}{2}$',
        ],
    ),
    '15\\mbox{ cm}^2': (
        [
            '\\boxed{15}', '\\boxed{15\\text{ cm}^2}', 'Answer: $15$', 'Final answer: 15 cm^2', '\\boxed{15\\,\\text{cm}^{2}}', 'Answer: $15 \\mathrm{cm}^2$',
        ],
        [
            '\\boxed{225}', '\\boxed{1.5}', '\\boxed{-15}', '\\boxed{15^2}', '\\boxed{\\sqrt{15}\\text{ cm}^2}', '\\boxed{15, 2}',
        ],
    ),
    '\\text{Evelyn}': (
        [
            'Answer: Evelyn', '### Final Answer\n**Evelyn**', '\\boxed{\\text{Evelyn}}', 'The answer is Evelyn, because she is fast.',
            'Final Answer: $\\text{Evelyn}$',
        ],
        [
            'Answer: Evelyn or Tom', 'The answer is not Evelyn', 'Answer: Tom, because Evelyn is slow', 'Answer: Tom',
        ],
    ),
    '(3,4]': (
        [
            'Answer: $(3,4]$', 'Final Answer: $x \\in (3, 4]$', '\\boxed{(3,4]}', 'The answer is $(3,4]$, since it is half open.',
        ],
        [
            'Answer: $[3,4)$', 'Answer: $(3,4)$', 'Answer: $(4,3]$', 'Answer: $(3,5]$',
        ],
    ),
    '5': (
        [
            'Answer: 5\n', '\\[\\boxed{5}\\]', '**Answer: 5**', '**Final Answer: $5$**', '*Final answer*: 5', 'The answer to part 2 is $5$.',
            'Final Answer: $x=5$, as required',
        ],
        [
            'Answer: 5 or -5', 'Answer: $\\pm5$', 'Answer: 2x = 5', 'Answer: 55', 'Answer: 0.5',
        ],
    ),
    '10_2': (
        [
            '\\boxed{10_{\\text{two}}}', '\\boxed{(10)_2}',
        ],
        [
            '10_8', '10', '10_{10}', '\\boxed{10_{16}}', '10_3', '10_x',
        ],
    ),
    '2516_8': (
        [
            '\\boxed{2516_{\\text{eight}}}',
        ],
        [
            '2516_7', '2516', '2516_{10}', '2516_9',
        ],
    ),
    '10': (
        [
            '<b>Answer</b>: 10', '<span class="x">10</span>', '<p>10</p>', 'Answer: <b>10</b>', '<answer><b>10</b></answer>', 'Answer:<br>10', 'Ans: 10',
            '**Ans:** $10$ (5 + 5)', 'Ans. 10', 'The answer is <strong>10</strong>.', '\\boxed{\\underline{10}}', '\\fbox{10}',
        ],
        [
            '10_2', '10_8', '10_{16}', 'Answer: 10 dozen', 'Answer: 10 squared',
        ],
    ),
    '15000': (
        [
            '15 000', '\\boxed{15 000}', '\\boxed{15\\ 000}', 'Answer: 15 000',
        ],
        [
        ],
    ),
    '18\\pi': (
        [
            '$18\\pi$ cm', '\\boxed{18\\pi \\text{ cm}^2}', '18π', 'Answer: 18π',
        ],
        [
        ],
    ),
    '(1,2)': (
        [
            '$(x, y) = (1, 2)$',
        ],
        [
        ],
    ),
    '\\frac{3}{4}': (
        [
            '¾', 'Answer: ¾', 'Ans: $\\frac{3}{4}$', '{3\\over4}',
        ],
        [
            'I doubt that the answer is $\\frac{3}{4}$.', 'The wrong answer is $\\frac{3}{4}$',
        ],
    ),
    '2\\sqrt{3}': (
        [
            '<b>Answer:</b> $2\\sqrt{3}$',
        ],
        [
        ],
    ),
    '101_2': (
        [
            '$101_{\\text{two}}$',
        ],
        [
            '101', '101_3', '101_{10}',
        ],
    ),
    '100': (
        [
        ],
        [
            '100_2',
        ],
    ),
    '1{,}234': (
        [
            '1 234',
        ],
        [
        ],
    ),
}  # fmt: skip

# Of red, blue, green and none.
LETTERS: Table = {
    'B': (
        [
            'B – because it is blue', 'B is the answer because A is red', 'Only B is correct.', 'A, C and D are wrong, so B is correct',
            "A isn't right, so the answer must be B", '### Final Answer\n**B. blue**', '{"answer": "B"}', '{"answer": "B. blue"}', '{"answer": "blue"}',
            '{"answer": "B", "why": "C is wrong"}', "{'answer': 'B'}", '```json\n{"answer": "B", "confidence": 0.9}\n```', '{"choice": "B"}',
            '{"final_answer": "(B)"}', '### Final Answer\nB', '## Answer\n\nB', '**Final Answer**\n\n(B)', '**Final Answer:** B', '**Final Answer: B**',
            'Final answer: (B) blue', 'Final answer\nB', 'Final Answer: **B**', '# Answer: B', 'Answer: B because it is blue', 'B because it is blue',
            'B, because the sky is blue', '(B) because of the sky', 'B since C is wrong', 'B. because it is blue', 'B is correct', 'B is correct.',
            'Option B is correct.', '**B** is correct', '(B) is correct', 'B. blue is correct', 'I think B is correct because C is green.', 'So B is correct.',
            'Therefore, B is the correct answer.', 'Therefore B is right', 'C is wrong. B is the correct option.', 'A is incorrect.\nB is correct.\n',
            'The correct option is B', 'The correct choice is (B).', 'The correct answer is B, not C.', 'The best option is B', 'The right choice would be B',
            'The correct answer would be B', 'Correct answer: B', 'The answer is option B', 'The answer should be (B) since A is red',
            'The answer to the question is B.', 'My choice: B', 'Option: B', "The answer isn't C. The answer is B", 'The answer is C. Wait, the answer is B.',
            '\\boxed {B}', '$\\boxed B$', '\\boxed{B} \\boxed{}', '\\boxed{\\text{B. blue}}', 'Answer: B) blue', 'Answer - B', 'ANSWER: B', '> **Answer:** B',
            '- Answer: B', 'B: blue', 'blue because of the sky', '<answer>B because C is wrong</answer>', '<answer>B is correct</answer>',
            '<answer>{"answer": "B"}</answer>', '<answer>Final answer: B</answer>', '<answer>B, not C</answer>', 'The answer is **B**, as A is red',
            'The answer is "B"', 'The answer is "B".', 'The answer is blue, since the sky is', 'The answer is: B. blue (not C. green)',
            'Thus, the answer is **(B) blue**.', 'The answer is $\\text{B}$.', 'Hence option (B) is correct', 'Hence, (B) blue is correct.',
            'The answer must be B', 'Answer:\nB', 'Answer:\n\n**B**', '<h1>Answer: B</h1>', '<span class="x">B</span>', 'Ans: B', 'Ans. B', '**Ans:** B',
            'ANS = (B)', 'It must be B.', 'It has to be B', 'I choose B.', 'I pick B', "I'd go with B.", 'I would go with option B.', "I'll go with (B).",
            'So it is B.', 'It is B.', "It's B.", 'Thus B.', 'Hence, (B).', 'Therefore, B', '✅ B', 'Answer: ✅ B', "It can't be A, so it is B.", '[[B]]',
            'Answer: [[B]]', 'Choose B', 'Select B.', 'B is the one.', '答案：B', '答案是B', 'The answer is B (blue).', 'B (blue)', 'B, blue', 'B = blue',
            'The answer is letter B', 'Letter B', 'B\n\nBecause the sky is blue.', 'The answer is likely B.', 'The answer is probably B',
            'The answer is clearly B.', 'The answer is indeed B.', 'The answer is definitely B',
        ],
        [
            'The answer is a', '### Final Answer\n**C. green**', '{"answer": "C"}', '{"answer": "A or B"}', '{"answer": ["A", "B"]}',
            '{"answer": "C", "not": "B"}', '{"answer": ""}', '### Final Answer\nA or B', 'Final answer: B or C', 'Final answer: A, B', 'B and C are correct',
            'A or B is correct', 'Neither A nor B is correct', 'Either A or B is correct', 'B is incorrect', 'B is not correct', "B isn't correct",
            'B is wrong', 'If B is correct, then C', 'Why B is correct is unknown', 'Is it true that A is correct', 'C is correct because B is wrong',
            'C is correct, B is not', 'B is correct. No, C is correct.', 'B is correct.\nFinal answer: C', 'Answer: B\nFinal answer: C', 'The answer is not B',
            "The answer isn't B.", 'not B', '<answer>not B</answer>', 'The answer is C, not B', 'C because B is wrong', 'C, because B is not',
            'Answer: C because B is red', '<answer>C because B is wrong</answer>', '<answer>B or C</answer>', 'The correct option is C',
            'The correct choice is A or B', 'Option B is incorrect', 'The wrong option is A', '\\boxed {C}', '\\boxed{B} \\boxed{C}', '\\boxed{A, B}',
            '$\\boxed C$', 'Answer: A and B', 'Answer: B, C', 'Answer: B/C', 'Answer: B & C', 'Answer: (B) or (C)', 'Answer: B. green', 'Answer: C. blue',
            'Answer: E', 'Answer: none of them', 'Answer: Bob', 'Answer: Be careful', 'By all means', 'Blue or green', 'A because',
            'All of the above is correct', 'That is correct', 'It is correct', 'The statement about B is correct', 'green is correct',
            'Green, because B is wrong', 'I', 'I think so', 'A lot is correct', 'Answer: AB', 'Answer: BB', 'Answer: B C', 'Answer: B? C', 'D is the best',
            'Answer:', '### Final Answer', 'Both B and C', 'B vs C', 'A) red B) blue C) green D) none', 'The answer is B or maybe C',
            'The answer is between B and C', 'Answer: Ｂ', 'Answer: β', 'Answer: 2', 'Answer: neither B nor C', 'unless B is correct, it is A',
            'I doubt that B is correct', 'B is correct?', "I don't think that the answer is B.", 'I doubt the answer is B.', 'I doubt that the answer is B',
            'It is unlikely that B is correct.', 'It is false that B is correct.', 'One might think B is correct, but C is.',
            'One might think that B is correct.', 'You may think the answer is B, but it is C.', 'If the answer is B, then we get 3.',
            'Suppose the answer is B.', 'Assume that B is correct.', 'Let us assume the answer is B.', 'No one thinks that B is correct.',
            'B is correct only if A is', 'The wrong answer is B.', 'The incorrect answer is B', 'The answer is B. Wait, no, it is C.', 'Answer: B (or C)',
        ],
    ),
    'C': (
        [
            'It is green.', '<h2>Answer: C</h2>', '<div>C</div>', '<ul><li>C</li></ul>', 'Ans: C', 'Ans: (C) green', '**Ans:** C', 'Ans - C', 'Answer: C ✅',
            '✅ C. green', '👉 **C**', 'Without doubt C is correct.', 'The answer is likely C.', 'The answer is most likely C.',
            'The answer is almost certainly C.', 'The correct answer is therefore C.', 'The answer, of course, is C.', 'The answer here is C.',
            'The answer to this question is C.', 'Answer: {C}', '#### C',
        ],
        [
            'I doubt that C is right.', 'I seriously doubt that C is correct.', 'None of A, B, C is correct', 'If the answer is C, it is green.',
            'Suppose the answer is C.', "I'm not sure if the answer is C", "I don't believe the answer is C.", "It's unlikely that the answer is C.",
            'It is impossible that C is correct.', 'It is not true that the answer is C.', 'You might think C is correct.', 'You may think the answer is C.',
            'Some would say the answer is C.', 'The wrong answer is C.', 'The incorrect option is C', 'The answer is C. No, wait: D.',
            'The answer is C... wait, no, D.', 'Answer: C (maybe D)',
        ],
    ),
}  # fmt: skip
