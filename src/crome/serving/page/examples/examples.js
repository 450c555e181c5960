// Drawings of the project's own; choosing one fills in its question.
export const EXAMPLES = [
  { file: "circle.svg", name: "A circle", question: "What colour is the circle?" },
  { file: "triangle.svg", name: "A triangle", question: "What colour is the triangle?" },
  { file: "shapes.svg", name: "Two shapes", question: "Is there a star?" },
  { file: "apple.svg", name: "An apple", question: "What is this?" },
  { file: "house.svg", name: "A house and a tree", question: "Is there a tree?" },
  { file: "boat.svg", name: "A boat", question: "What is in the picture?" },
];
