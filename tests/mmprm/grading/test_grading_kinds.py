"""Test the grader by kind of answer: each gold with answers that a careful reader accepts or rejects."""

from __future__ import annotations

import pytest

from mmprm.grading.symbolic import SymbolicGrader
from mmprm.types import Problem, Verdict

ROWS = [
    # tiny and huge numbers
    ("10^{-17}", r"1/10^{17} ¦ 1\times10^{-17} ¦ 1e-17", "10^{-18} ¦ 0"),
    (r"\frac{50!}{48!}", r"2450 ¦ 50\cdot49", r"\frac{50!}{47!} ¦ 2451"),
    ("1-2^{-60}", r"1-\frac{1}{2^{60}}", "1 ¦ 1-2^{-61}"),
    (r"6.02\times10^{23}", r"602000000000000000000000 ¦ 6.02 \cdot 10^{23} ¦ 6.02E23", r"6.02\times10^{22} ¦ 6.02"),
    (r"\sqrt{2}\cdot 10^{-20}", r"\frac{\sqrt2}{10^{20}}", r"\sqrt{3}\cdot 10^{-20} ¦ 0"),
    (r"9.11\times10^{-31}\text{ kg}", r"9.11\times10^{-31} ¦ 9.11\times10^{-28}\text{ g}", ""),
    (r"\left(\frac{1}{2}\right)^{100}", r"2^{-100} ¦ \frac{1}{2^{100}}", ""),
    ("e^{-50}", r"\frac{1}{e^{50}} ¦ exp(-50)", "e^{-51} ¦ 0"),
    (r"\frac{\pi}{10^{18}}", r"\pi\times10^{-18}", r"\frac{\pi}{10^{19}}"),
    (r"\{10^{-20},1\}", r"\{1,10^{-20}\}", r"\{10^{-21},1\}"),
    # several letters
    ("B", r"B ¦ (B) ¦ B. ¦ **B** ¦ \boxed{B} ¦ option B ¦ The answer is (B) ¦ B)", "A, B ¦ A and B ¦ (A) and (B)"),
    # two blanks are not a product
    ("$$3$$ $$4$$", "3, 4 ¦ 3 and 4 ¦ 3; 4 ¦ 3、4", "12 ¦ 7 ¦ 34 ¦ 4, 3"),
    (r"$$\frac{1}{2}$$ $$\frac{2}{3}$$", r"\frac12, \frac23 ¦ 0.5, 2/3 ¦ (1) \frac12 (2) \frac23", r"\frac13 ¦ 1/2"),
    (r"(1)$$5$$ (2)$$-\sqrt{3}$$", r"5, -\sqrt{3} ¦ (1)5;(2)-\sqrt3 ¦ 5 and -\sqrt3", r"-5\sqrt3 ¦ 5-\sqrt3 ¦ 5"),
    # percent
    ("0.3", r"30% ¦ 30\%", "0.3% ¦ 3%"),
    ("x=20", "20", "20%"),
    (r"75\%", "0.75 ¦ 3/4 ¦ 75 % ¦ 75", "0.75% ¦ 7.5"),
    (r"45^\circ", "45 ¦ 45°", "45%"),
    # yes or no
    ("Yes", "yes ¦ Yes. ¦ Yes, it does ¦ YES ¦ yes, because both are equal", "No ¦ Yes and no ¦ no, yes"),
    ("False", "false ¦ False. ¦ FALSE ¦ It is false", "true ¦ True or false"),
    ("No", "no ¦ No, it is not ¦ NO", "Yes ¦ yes ¦ Neither"),
    # "and" instead of "or"
    ("x<-1 or x>4", r"x>4 or x<-1 ¦ (-\infty,-1)\cup(4,\infty) ¦ x<-1 \text{ or } x>4", "x<-1 and x>4 ¦ -1<x<4 ¦ x>4"),
    # another equation
    ("9", "x=9 ¦ S=9 ¦ 9=x ¦ AB=9 ¦ x = 3^2 = 9", r"\sqrt{x}=9 ¦ x^2=9 ¦ x+1=9"),
    ("3 = 2a+b", "2a+b=3", "2a+b"),
    # currencies
    ("$20", r"20 ¦ 20 dollars ¦ \$20 ¦ 20 USD ¦ $20.00", "€20 ¦ £20 ¦ 20 yuan"),
    ("¥30", "30 ¦ 30 yuan ¦ 30元", "$30"),
    ("£7", "7 ¦ 7 pounds", "$7 ¦ €7"),
    # letters and marks
    (r"\gamma+1", r"1+\gamma", r"\gamma+2 ¦ 1"),
    (r"(\Gamma+2)x", r"\Gamma x+2x", r"(\Gamma+1)x"),
    ("v_1 t", "t v_1", "v_2 t ¦ v t"),
    ("y''", "y''", "y' ¦ y"),
    (r"\frac{q_1q_2}{r^2}", r"q_1 q_2/r^2 ¦ \frac{q_2q_1}{r^2}", r"\frac{q_1q_2}{r}"),
    ("E_1", "E_{1}", "E_2 ¦ E"),
    ("I_0/4", r"\frac{I_0}{4}", "I_1/4"),
    (r"\beta c", r"c\beta", r"\alpha c"),
    ("g'(x)", "g'(x)", "g(x) ¦ g''(x)"),
    # several blanks
    ("3.5.", "3,5", ""),
    ("(1) 8 2.5\n(2) 300", "8, 2.5, 300 ¦ (1) 8, 2.5 (2) 300", "8, 2.5"),
    ("2.3.4.", "2,3,4 ¦ 234 ¦ ②③④", "2,3 ¦ 24"),
    ("$$x=2$$ $$y=-1$$", "x=2, y=-1 ¦ 2, -1", "x=-1,y=2"),
    # thousands
    ("25000", r"25,000 ¦ 25 000 ¦ 25\,000 ¦ 25{,}000 ¦ 25\ 000 ¦ 25000.0", "25,00 ¦ 2500"),
    ("1000000", r"1,000,000 ¦ 1 000 000 ¦ 10^6 ¦ 1\,000\,000", "1 000"),
    ("12,345.5", "12345.5 ¦ 12 345.5", "12345"),
    # exact with its decimal
    (r"\frac{\pi}{4}", r"\frac{\pi}{4}\approx 0.785 ¦ \pi/4 ≈ 0.7854", r"\frac{\pi}{3}\approx 1.05"),
    (r"\sqrt{3}", r"\sqrt{3}\approx1.73 ¦ √3 ≈ 1.732 ¦ \sqrt{3} \text{ or } 1.732", r"\sqrt5\approx2.24"),
    (r"\frac{2}{7}", r"\frac27 \approx 0.286 ¦ 0.2857", "0.29"),
    # e-notation
    ("0.0015", r"1.5e-3 ¦ 1.5\times10^{-3} ¦ 1.5*10^-3 ¦ 1.5E-3 ¦ 1.5 × 10^{-3}", "1.5e-2"),
    ("2.5e6", r"2500000 ¦ 2.5\times 10^6 ¦ 2,500,000", "2.5e5"),
    # intervals
    ("(2,7)", r"2<x<7 ¦ \{x|2<x<7\} ¦ x\in(2,7)", r"[2,7] ¦ (2,8) ¦ 2\le x\le7"),
    (r"x\ge 3", r"[3,\infty) ¦ [3,+\infty) ¦ x\in[3,\infty) ¦ 3\le x ¦ \{x\mid x\ge3\}", r"x>3 ¦ (3,\infty) ¦ x\le 3"),
    (r"(-\infty,-1]\cup[1,\infty)", r"x\le-1 or x\ge1 ¦ [1,+\infty)\cup(-\infty,-1]", "(-1,1)"),
    (r"\mathbb{R}", r"R ¦ (-\infty,\infty) ¦ all real numbers ¦ \text{all reals} ¦ x\in\mathbb{R}", r"(0,\infty) ¦ 0"),
    (r"0<k\le\frac12", r"k\in(0,\frac12] ¦ (0,0.5] ¦ 0 < k ≤ 1/2", r"0<k<\frac12"),
    (r"x\ne 2", r"x\neq2 ¦ (-\infty,2)\cup(2,\infty)", "x=2 ¦ x>2"),
    # Chinese
    ("8", "8个 ¦ 8人 ¦ 8米 ¦ 8元 ¦ 答案是8 ¦ 答案：8 ¦ 为8 ¦ 8厘米 ¦ 8 只 ¦ 8天 ¦ 8分钟", "9个"),
    ("30 cm", "30厘米 ¦ 30 厘米", "30米"),
    ("3,4", "3或4 ¦ 3和4 ¦ 3、4", "3或5"),
    ("B", "选B ¦ 答案是B ¦ 故选B ¦ 选项B ¦ 答案：B", "选C ¦ 答案是A"),
    ("5平方厘米", "5 ¦ 5 cm^2", "5厘米"),
    # decoration
    ("7", r"\boxed{7} ¦ **7** ¦ `7` ¦ 7. ¦ 7 ¦  7  ¦ \mathbf{7} ¦ \underline{7} ¦ \color{blue}{7}", "8"),
    # program text
    (r"3\sqrt{5}", r"3*sqrt(5) ¦ 3sqrt(5) ¦ 3√5 ¦ 3\sqrt{5} ¦ 3 * 5^(1/2) ¦ 3*5**0.5", "3*sqrt(6)"),
    (r"2\pi/3", "2*pi/3 ¦ 2pi/3 ¦ (2/3)*pi", "pi/3"),
    ("x^2+1", "x**2+1 ¦ x^2 + 1 ¦ x*x+1", "x^2-1"),
    (r"\ln 3", "ln(3) ¦ ln 3", "log10(3)"),
    ("3+4i", r"3 + 4*i ¦ 4i+3 ¦ 3+4\mathrm{i}", "3-4i"),
    (r"\sin x", "sin(x) ¦ sin x", "cos(x)"),
    ("|x|", r"abs(x) ¦ \left|x\right|", "x"),
    (r"x\le3", "x<=3", "x<3"),
    # vectors
    (r"\frac12\vec{a}+\vec{b}", r"\frac{1}{2}a+b ¦ \vec b+\frac12\vec a", r"\frac12\vec b+\vec a"),
    # sets
    ("1,3", r"3,1 ¦ \{1,3\} ¦ x=1 or x=3 ¦ x_1=1,x_2=3 ¦ x_1 = 3, x_2 = 1 ¦ 1 and 3 ¦ x = 1, 3 ¦ 1,3,3", "1 ¦ 1,3,5"),
    (r"\emptyset", r"\varnothing ¦ no solution ¦ No solutions ¦ empty set ¦ \{\} ¦ ∅", r"0 ¦ \{0\}"),
    (r"\{2\}", "2 ¦ x=2", "3"),
    (r"2\pm\sqrt3", r"2+\sqrt3,2-\sqrt3 ¦ x=2\pm\sqrt3 ¦ \{2-\sqrt{3}, 2+\sqrt{3}\}", r"2+\sqrt3"),
    # matrices
    (r"\begin{pmatrix}3\\4\end{pmatrix}", r"(3,4) ¦ \langle3,4\rangle ¦ \begin{bmatrix}3\\4\end{bmatrix}", "(4,3)"),
    (r"\begin{pmatrix}2&0\\0&2\end{pmatrix}", r"2\begin{pmatrix}1&0\\0&1\end{pmatrix} ¦ [[2,0],[0,2]]", ""),
    ("(1,-2,3)", r"\langle 1,-2,3\rangle ¦ \begin{pmatrix}1\\-2\\3\end{pmatrix}", "(1,2,3)"),
    # units
    ("8 m", r"8 ¦ 8m ¦ 8 meters ¦ 8 metres ¦ 8\text{ m} ¦ 800 cm ¦ 0.008 km", "9 m ¦ 8 cm ¦ 8 s"),
    ("12V", r"12 ¦ 12 V ¦ 12 volts ¦ 12\text{V}", "13V"),
    ("3.5 kg", r"3.5 ¦ 3500 g ¦ 3.5 kilograms ¦ 3.5\,\mathrm{kg}", "3.5 g"),
    ("20 m/s", r"20 ¦ 72 km/h ¦ 20 ms^{-1} ¦ 20 m·s⁻¹ ¦ 20\,\mathrm{m/s} ¦ 20 meters per second", "20 km/h"),
    ("15 cm²", r"15 ¦ 15 cm^2 ¦ 15 square centimeters ¦ 15\text{ cm}^{2} ¦ 15 sq cm", "15 cm ¦ 15 cm^3"),
    ("50 Hz", "50 ¦ 50 hertz", "50 kHz"),
    ("2 hours", "2 ¦ 120 minutes ¦ 2 h ¦ 2 hr", "2 minutes"),
    ("10 dollars", "$10 ¦ 10", "10 euros"),
    ("5 Ω", r"5 ¦ 5 ohms ¦ 5\,\Omega", "5 V"),
    ("3 J", "3 ¦ 3 joules", "3 W"),
    ("7 apples", "7", "8 apples"),
    # rounded golds
    ("0.33", r"1/3 ¦ 0.333 ¦ \frac13", "0.34 ¦ 0.3 ¦ 1/2"),
    ("2.24", r"\sqrt5 ¦ 2.236 ¦ 2.2361", "2.25"),
    ("3.14", r"\pi ¦ 3.1416", "3.15 ¦ 3"),
    ("12.6", r"4\pi ¦ 12.57 ¦ 12.566", "12.7 ¦ 13"),
    ("66.7%", "2/3 ¦ 66.67%", "66%"),
    ("0.5", "1/2 ¦ 0.50", "0.6 ¦ 0.46 ¦ 0.52"),
    # spellings
    ("2", "two ¦ Two", "three"),
    ("3/2", r"one and a half ¦ 1\frac12 ¦ 1.5 ¦ {3 \over 2}", "one half"),
    ("45°", r"45度 ¦ 45 degrees ¦ 45^{\circ} ¦ 45^\circ ¦ 45 deg ¦ 45^{\rm o}", "46度"),
    ("101_2", r"101_{2} ¦ (101)_2 ¦ 101_{\text{two}} ¦ 101_{(2)}", "101_3 ¦ 110_2"),
    (r"\frac{1}{6}", r"0.1\bar{6} ¦ 0.1\overline{6} ¦ 0.1666\ldots ¦ one sixth", "0.16"),
    ("22.5°", r"22^\circ30' ¦ 22°30'", "22°"),
    (r"y=\frac{6}{x}", r"xy=6 ¦ x=\frac6y ¦ y=6/x", "xy=5"),
    (r"\ln x", r"\log_e x", r"\lg x"),
    # names and conditions
    ("n^2", r"a_n=n^2 ¦ a_n = n^2 (n\in N^*) ¦ n^2 \text{ for all } n\ge1 ¦ n^2, n\in\mathbb{N}", r"n^2+1 (n\in N^*)"),
    (r"x=2k\pi", r"x=2k\pi, k\in\mathbb{Z} ¦ x = 2k\pi (k\in Z) ¦ 2k\pi", r"x=k\pi, k\in Z"),
    # sentences in another spelling
    ("(3,4)", "The vertex is (3, 4) ¦ The coordinates are (3,4) ¦ So the point is $(3,4)$.", "The point is (4,3)"),
    ("3/8", "The probability is 3/8 ¦ The probability is 0.375", "The probability is 0.35"),
    ("4, 7", "The roots are 4 and 7 ¦ The solutions are x = 4 and x = 7", "The roots are 4 and 8"),
    ("2500", "The total is 2,500 ¦ The total cost is $2500 ¦ There are 2,500 people", "The total is 2,600"),
    ("25%", r"The answer is 25% ¦ It is 25 percent ¦ The rate is 25\%", "The answer is 24%"),
    # functions and letters
    (r"\frac{\sqrt3}{2}", r"\sin 60^\circ ¦ \cos 30° ¦ \sin\frac{\pi}{3}", r"\sin 30° ¦ \sin 60"),
    ("1", r"\tan 45^\circ ¦ \sin 90°", r"\tan 30^\circ"),
    (r"\overline{CD}", "CD ¦ DC", r"\overline{CE}"),
    (r"\rho gh", r"gh\rho", r"\rho g"),
    ("-1", r"e^{i\pi} ¦ i^2 ¦ \cos\pi", "1"),
    # intervals and inequalities
    ("(-1,5]", r"-1<x\le 5 ¦ x\in(-1,5] ¦ \{x:-1<x\le5\}", r"-1<x<5 ¦ -1\le x\le5"),
    ("x<7", r"(-\infty,7) ¦ \{x|x<7\} ¦ 7>x", r"x\le7 ¦ x>7 ¦ (7,\infty)"),
    ("a>0", r"(0,\infty) ¦ a\in(0,+\infty)", "a<0"),
    # named quantities
    ("12", r"Area = 12 ¦ Perimeter: 12 ¦ V=12 ¦ \angle ABC=12 ¦ |BC| = 12 ¦ f(3)=12 ¦ S_{ABCD}=12", "Area = 13"),
    ("60°", r"\angle B = 60° ¦ m\angle ABC=60^\circ ¦ \theta=60°", r"\angle B=61°"),
    (r"\frac23", r"P(B)=\frac23 ¦ P(A|B)=2/3 ¦ \frac{AB}{CD}=\frac23 ¦ \cos A=\frac{2}{3}", r"P(B)=\frac13"),
    # letters among words
    ("D", "The answer is D ¦ The correct option is D ¦ (D) 5 ¦ D 30°", "The answer is C ¦ (C) 5 ¦ C 30"),
    # sentences
    ("15", "The answer is 15 ¦ There are 15 dogs in the image. ¦ We get 15 ¦ The total is $15$", "The answer is 16"),
    ("n^2+n", "The sum is n^2+n ¦ The formula is $n(n+1)$", "The sum is n^2"),
    ("120°", r"The angle is 120 degrees ¦ \angle A is 120°", "The angle is 110 degrees"),
    (r"\frac{3}{5}", r"The fraction is 3/5 ¦ the ratio is $\frac35$", "The fraction is 3/4"),
    # golds in a wrapping
    ("#### 12", "12", "13"),
    ("So it is 4.\n#### 4", "4", "5"),
    ("<answer>B</answer>", "B", "C"),
    ("B) 12 cm", "B ¦ (B) ¦ 12 cm ¦ 12", "A ¦ 13 cm"),
    ("The answer is 7.", "7", "8"),
    ("Answer: C", "C", "D"),
    (r"Therefore the answer is $\boxed{\frac{2}{3}}$", "2/3", "1/3"),
    ("Option C", "C", "B"),
    ("答案：6", "6", "7"),
    ("C. rhombus", "C ¦ rhombus", "A ¦ square"),
    # other units
    ("2 kg", "2000 g ¦ 2000 grams ¦ 2", "2 g ¦ 2000 kg"),
    ("3 h", "180 min ¦ 3 hours ¦ 10800 s", "3 min"),
    ("1 m^2", "10000 cm^2 ¦ 1 square meter", "1 m"),
    ("36 km/h", "10 m/s ¦ 36 kilometers per hour ¦ 36 kmph", "36 m/s"),
    ("1 L", "1000 mL ¦ 1 liter ¦ 1 dm^3", "1 mL"),
    ("1 hour 15 minutes", "75 minutes ¦ 1.25 hours ¦ 75 min", "75 s"),
    ("0°C", "0 ¦ 0 °C ¦ 0 degrees Celsius", "0°F"),
    ("180°", r"\pi ¦ \pi rad", r"\pi/2"),
    ("2 km", "2000 m ¦ 2", "2 m"),
    # alternatives
    (r"$$x>1$$(or $$x\ge1$$)", r"x>1 ¦ x\ge1", "x<1"),
    ("5 (not unique)", "5", "6"),
    (r"$$\frac{9}{2}$$(or 4.5)", "9/2 ¦ 4.5", "4"),
    ("a cylinder.", "cylinder ¦ a cylinder ¦ The shape is a cylinder.", "cone"),
    ("west\n30\nsouth\n60", "west, 30, south, 60 ¦ west; 30; south; 60", "south, 30, west, 60"),
    # tuples and names
    ("(2,-1)", "x=2, y=-1 ¦ x=2 and y=-1", "x=-1,y=2 ¦ (2,1)"),
    ("x=3, y=5", r"(3,5) ¦ y=5, x=3 ¦ \begin{cases}x=3\\y=5\end{cases}", "(5,3)"),
    ("a=1, b=2, c=3", "(1,2,3) ¦ 1,2,3 ¦ c=3,b=2,a=1", "a=1,b=3,c=2"),
    # no letter, or several
    ("B", "B, not A ¦ B because A is wrong", "Not B ¦ A or B"),
    # other words
    ("isosceles", "Isosceles ¦ an isosceles triangle ¦ It is isosceles", "scalene ¦ equilateral"),
    ("odd", "Odd ¦ odd. ¦ It is odd", "even ¦ not odd ¦ neither"),
    ("perpendicular", "Perpendicular ¦ They are perpendicular", "parallel ¦ not perpendicular"),
    ("north", "North", "south ¦ northeast"),
    ("Tuesday", "tuesday ¦ It is Tuesday", "Monday ¦ Thursday"),
    ("circle", "a circle ¦ The shape is a circle", "ellipse ¦ square ¦ a triangle"),
    ("red", "Red ¦ It is red", "blue ¦ not red"),
    ("equal", "Equal ¦ They are equal", "not equal ¦ unequal ¦ greater"),
    ("Alice", "alice ¦ It is Alice", "Bob"),
    # other sets
    ("7", "x=7", r"x\ge7 ¦ x\ne7 ¦ 7x=7 ¦ x^3=7"),
    (r"(3,\infty)", "x>3", r"[3,\infty) ¦ x\ge3"),
    ("[2,5]", r"2\le x\le5", "(2,5) ¦ 2,5 ¦ [2,5)"),
    ("x<0 or x>2", r"(-\infty,0)\cup(2,\infty)", "x>2 ¦ 0<x<2 ¦ x<0"),
    # other answers
    (r"\{3,4\}", r"\{4,3\}", "(3,4) ¦ [3,4]"),
    ("<5", "x<5", r">5 ¦ \le5"),
    ("b_n=3n", "3n", "a_n=3n"),
    (r"AB\perp BC", r"BC\perp AB", r"AB\parallel BC"),
    (r"\triangle PQR\cong\triangle XYZ", r"\triangle XYZ\cong\triangle PQR", ""),
    (r"p\lor q", r"q\lor p", r"p\land q ¦ \neg p"),
    ("T_1+T_2", "T_2+T_1", "T_1-T_2 ¦ T_1+T_3"),
    (r"\binom{6}{2}", "15", "3"),
    ("60°", "60", "60 rad"),
    (r"\text{undefined}", "undefined", "1"),
    ("z=0", "0", "x=0"),
    (r"\lg x", r"\log_{10}x", r"\ln x"),
    # signs and cases
    ("=", "equal to ¦ equal", "< ¦ >"),
    ("<", "less than ¦ smaller than", ">"),
    (r"\begin{cases}2x, x<1\\x^2, x\ge1\end{cases}", r"\begin{cases}x^2,&x\ge1\\2x,&x<1\end{cases}", ""),
    ("four", "4 ¦ four", "5"),
    (r"\hat y=1.2x+3", "y=1.2x+3", "y=1.2x+4"),
    (r"$$\ce{H_2O}$$", "H_2O", "CO_2"),
]
"""Gold, right answers, wrong answers; answers are separated by ¦."""
CASES = [
    (gold, answer.strip(), verdict)
    for gold, right, wrong in ROWS
    for answers, verdict in ((right, Verdict.CORRECT), (wrong, Verdict.INCORRECT))
    for answer in answers.split(" ¦ ")
    if answer
]


@pytest.fixture(scope="module")
def grader():
    with SymbolicGrader() as grader:
        yield grader


@pytest.mark.parametrize(("gold", "answer", "verdict"), CASES, ids=lambda value: str(value)[:40])
def test_verdict(grader: SymbolicGrader, gold: str, answer: str, verdict: Verdict) -> None:
    [grading] = grader.grade_many([(Problem("p", "", gold), f"<answer>{answer}</answer>")])
    assert grading.verdict is verdict, grading
